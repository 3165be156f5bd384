//! `cargo xtask vm-prometheus`: Prometheus judges the exporter, the alert rules and the dashboard, in a guest.
//!
//! The package's programs are unpacked below `target/`, not installed: an installed Prometheus would run as a service.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::guest::accel::Choice;
use crate::vm::Vm;
use crate::{deb, kernel, paths};

/// The distribution's packages, and their programs. Before Debian 13 one package has both.
const PACKAGES: [&str; 2] = ["prometheus", "promtool"];
const PROGRAMS: [&str; 2] = ["/usr/bin/prometheus", "/usr/bin/promtool"];

/// Files of the checkout that are judged.
const JUDGED: [&str; 2] = ["prometheus-alerts.yml", "grafana-dashboard.json"];

const DEADLINE: Duration = Duration::from_secs(20 * 60);

/// Fetches Prometheus, boots a guest, and runs the judges there.
///
/// # Errors
/// The package cannot be fetched, the guest cannot be set up, or a judge finds a fault.
pub fn run(kernel: &str, choice: Choice) -> Result<()> {
    let vm = Vm::new(choice)?;
    let programs = programs(&vm)?;
    let kernels = vm.kernels(&[kernel.to_owned()])?;
    let judged = JUDGED.map(|name| {
        (
            format!("/root/{name}"),
            paths::root().join("docs").join(name),
        )
    });
    let [rules, dashboard] = judged.each_ref().map(|(guest, _)| guest.as_str());
    let program = ["/usr/bin/ublk-e2e", "--prometheus", rules, dashboard];
    let (mut guest, accel, _lock) = vm.guest(&kernels[0], &program, DEADLINE)?;
    guest.files.extend(programs);
    guest.files.extend(judged.clone());
    println!("prometheus on {} under {accel}", kernels[0].release);
    let outcome = guest.run(&mut |line| println!("{line}"))?;
    if !outcome.verdict.is_good() {
        bail!("{}", outcome.report());
    }
    Ok(())
}

/// The programs: paths in the guest, and here.
fn programs(vm: &Vm) -> Result<Vec<(String, PathBuf)>> {
    let apt = kernel::archive(&vm.manifest)?;
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for name in PACKAGES {
        let Some(package) = apt.find(name)? else {
            continue;
        };
        println!("{name} {}", package.version);
        let place = paths::vm().join(format!("{name}-{}", package.version));
        let is_wanted = |path: &str| PROGRAMS.contains(&path);
        for (path, bytes) in deb::files(&apt.fetch(&package)?, is_wanted)? {
            fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
            let here = place.join(path.rsplit('/').next().unwrap_or(&path));
            fs::write(&here, bytes).with_context(|| here.display().to_string())?;
            fs::set_permissions(&here, fs::Permissions::from_mode(0o755))?;
            found.push((path, here));
        }
    }
    let missing = |path: &&&str| !found.iter().any(|(known, _)| known == **path);
    match PROGRAMS.iter().find(missing) {
        Some(path) => bail!("the package index has no {path}, in none of {PACKAGES:?}"),
        None => Ok(found),
    }
}
