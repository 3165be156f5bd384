//! NBD devices over TLS against nbdkit: carried by the kernel over TCP, by a thread over a unix socket.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};

use super::nbd::{Disk, Nbdkit, nbd, socket, spec};
use crate::case::{Case, measured, rounds};
use crate::cli::{self, patience, ublkctl};
use crate::fio::Fio;
use crate::verifier::Load;
use crate::wait::secs;
use crate::{procfs, run, sysfs};

pub fn cases() -> Vec<Case> {
    let guest = "sockets and servers of the test guest";
    [
        Case::new("l71_a_killed_nbd_server_costs_no_request_tls", || {
            served(None, "kernel")
        }),
        Case::new("nbd_tls_over_a_unix_socket_is_carried_by_a_thread", || {
            served(Some(&socket("tls")), "thread")
        }),
        Case::new("l75_nbd_servers_are_verified", verified),
    ]
    .map(|case| case.only_if(sysfs::in_guest(), guest))
    .into()
}

/// A directory with the files of an authority, a server and a client, laid out as nbdkit expects it; removed on drop.
struct Certificates(PathBuf);

impl Certificates {
    fn new(name: &str) -> Result<Self> {
        let directory = Self(std::env::temp_dir().join(format!("pki-{name}")));
        fs::create_dir_all(&directory.0)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(directory.at("ca-cert.pem"), issuer.pem())?;
        for who in ["server", "client"] {
            let names = ["localhost", "127.0.0.1"].map(str::to_owned);
            let key = KeyPair::generate()?;
            let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
            fs::write(directory.at(&format!("{who}-cert.pem")), certificate.pem())?;
            fs::write(directory.at(&format!("{who}-key.pem")), key.serialize_pem())?;
        }
        Ok(directory)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// TLS in the kernel, and AES-GCM where it is a module.
fn load_modules() -> Result<()> {
    for module in ["ctr", "ghash_generic", "gcm"] {
        let _ = run::module(module);
    }
    run::module("tls")
}

/// Verified I/O of each size; then the server is killed and restarted under load, and no request fails.
fn served(at: Option<&Path>, carrier: &str) -> Result<()> {
    load_modules()?;
    let certificates = Certificates::new(carrier)?;
    let disk = Disk::new(carrier)?;
    let mut server = Nbdkit::start_with(at, Some(&certificates.0), &["file", &disk.word()])?;
    let device = spec(&server.uri()).queues(2).depth(16).add()?;
    let tls = nbd(&device, "tls")?;
    ensure!(tls["carrier"] == carrier, "{tls}");
    let info = ublkctl(&["info", &device.id.to_string()])?.good()?.stdout;
    ensure!(
        info.contains(&format!("carried by {}", by(carrier))),
        "{info}"
    );
    for (block, size) in [("4k", "2M"), ("64k", "8M"), ("1m", "16M")] {
        let job = Fio::new(device.node()).set("rw", "randrw").set("bs", block);
        let job = job
            .set("iodepth", 8)
            .set("size", size)
            .set("verify", "crc32c");
        job.run(1).with_context(|| format!("blocks of {block}"))?;
    }
    ensure!(nbd(&device, "reconnects")? == 0, "the sessions hold");
    // The load takes blocks that are not its own for torn ones.
    run::good("blkdiscard", &["-z", device.node()])?;
    let load = Load::start(&device.path, 6, 256)?;
    let kills = rounds(3, 50);
    for number in 0..kills {
        let at = || format!("kill {number}");
        load.more(60, secs(60)).with_context(at)?;
        server.kill()?;
        server.again()?;
    }
    load.more(60, secs(60)).context("after the last kill")?;
    let errors = load.done().errors;
    let known = load.stop(patience())?;
    ensure!(errors == 0, "{errors} requests failed");
    known.check(&device.path).context("through the device")?;
    ensure!(
        nbd(&device, "tls")?["carrier"] == carrier,
        "after reconnects"
    );
    let (reconnects, replayed) = (nbd(&device, "reconnects")?, nbd(&device, "replayed")?);
    measured(format!(
        "{kills} kills of the server, TLS by {carrier}: {reconnects} reconnects, {replayed} requests replayed"
    ));
    device.delete()?;
    known.check(&disk.0).context("in the file")?;
    procfs::nothing_stuck(patience())
}

fn by(carrier: &str) -> &'static str {
    match carrier {
        "kernel" => "the kernel",
        _ => "a thread",
    }
}

/// L75 A device is only added from a server of the right authority and name, and only if its server process can read the
/// files again without its capabilities.
fn verified() -> Result<()> {
    let (certificates, others) = (Certificates::new("ours")?, Certificates::new("others")?);
    let path = socket("verified");
    let server = Nbdkit::start_with(Some(&path), Some(&certificates.0), &["memory", "8M"])?;
    let uri = server.uri();
    let secure = format!("nbds+unix:///?socket={}", path.display());
    let plain = format!("nbd+unix:///?socket={}", path.display());
    let ca = |of: &Certificates| of.at("ca-cert.pem").display().to_string();
    cli::fails(
        &["add", "nbd", &plain],
        1,
        &["NBD_REP_ERR_TLS_REQD", "nbds"],
    )?;
    let wrong = ca(&others);
    cli::fails(
        &["add", "nbd", &secure, "--tls-ca", &wrong],
        1,
        &["certificate", "--tls-ca"],
    )?;
    let named = format!("{uri}&tls-hostname=elsewhere");
    cli::fails(&["add", "nbd", &named], 1, &["elsewhere", "--tls-hostname"])?;
    let right = ca(&certificates);
    cli::fails(
        &["nbd", "list", &secure, "--tls-ca", &right],
        1,
        &["--tls-cert"],
    )?;
    ublkctl(&["nbd", "list", &uri])?.good()?;
    // Root reads the key by a capability that its server does not keep.
    let key = certificates.at("client-key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    chown(&key, Some(65_534), None)?;
    cli::fails(
        &["add", "nbd", &uri],
        1,
        &["client-key.pem", "capabilities"],
    )?;
    chown(&key, Some(0), None)?;
    spec(&uri).add()?.delete()?;
    cli::nothing_left(patience())
}
