//! Paths of the checkout and of build products.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

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

/// Gigabytes (2^30 bytes) that `what` needs below the target directory, checked before it begins: a compiler or a guest
/// that meets a full disk half an hour later says little about it.
///
/// # Errors
/// There is less.
pub fn check_space(what: &str, gigabytes: u64) -> Result<()> {
    let target = target();
    std::fs::create_dir_all(&target).with_context(|| target.display().to_string())?;
    let status = rustix::fs::statvfs(&target).with_context(|| target.display().to_string())?;
    let free = status.f_bavail.saturating_mul(status.f_frsize) >> 30;
    ensure!(
        free >= gigabytes,
        "{what} needs {gigabytes} GiB below {}, and {free} are free: `cargo clean` or `cargo xtask vm-reset` frees what \
         earlier runs left, and CARGO_TARGET_DIR moves the directory",
        target.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_space_is_told_before_it_is_used() {
        assert!(check_space("nothing", 0).is_ok());
        let error = check_space("a test", u64::MAX).expect_err("nobody has that much");
        assert!(error.to_string().contains("cargo clean"), "{error}");
    }
}
