//! ublk-ctrl alone: queries the driver's features, or reports why that fails and what to do.

#![forbid(unsafe_code)]

use std::path::Path;
use std::time::Duration;

use ublk_ctrl::{Control, Kind, probe};

fn main() {
    let finding = probe::control_node(Path::new("/"));
    println!("ublk-ctrl: {finding}");
    let answer = Control::open().and_then(|mut control| control.features(Duration::from_secs(10)));
    match answer {
        Ok(features) => {
            assert!(!features.is_empty(), "a driver without any feature");
            println!("ublk-ctrl: the driver has {:#x}", features.bits());
        }
        Err(error) => {
            // No driver, or no permission: the host check must have found the same.
            assert_eq!(
                finding.status,
                probe::Status::Bad,
                "{error} against {finding}"
            );
            assert!(finding.fix.is_some() && !error.hint().is_empty());
            assert_ne!(error.kind(), Kind::TimedOut, "{error}");
            println!("ublk-ctrl: {error}");
        }
    }
}
