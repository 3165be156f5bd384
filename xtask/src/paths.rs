//! Paths of the checkout and of build products.

use std::path::{Path, PathBuf};

/// The root of the checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a directory of the checkout")
}

/// Cargo's target directory, which `CARGO_TARGET_DIR` may move.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// All files of the virtual machines: packages, kernels, images, consoles. Always below the checkout, so that relocated
/// build directories share one cache.
pub fn vm() -> PathBuf {
    root().join("target/vm")
}
