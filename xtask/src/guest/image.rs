//! The initramfs shared by runs: init, our programs, and the host's tools with their libraries.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::newc::Newc;
use crate::{cmd, host};

/// The distribution's directory of libraries.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// An image on disk.
#[derive(Clone, Debug)]
pub struct Image {
    /// The archive.
    pub path: PathBuf,
}

/// The content of an image.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The static init.
    pub init: PathBuf,
    /// Our own programs: each goes to /usr/bin under its file name.
    pub programs: Vec<PathBuf>,
    /// Names of the host's programs.
    pub tools: Vec<String>,
    /// Libraries that they load at run time, below the directory of libraries.
    pub plugins: BTreeMap<String, Vec<String>>,
    /// A file tree of the host, and its destination.
    pub tree: Option<(PathBuf, String)>,
}

impl Image {
    /// Writes an image.
    ///
    /// # Errors
    /// A missing file, a library that cannot be found, or no busybox among the tools.
    pub fn build(contents: &Contents, path: &Path) -> Result<Self> {
        let parent = path.parent().context("an image has a directory")?;
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        let file = tempfile::NamedTempFile::new_in(parent)?;
        let mut archive = Newc::new(BufWriter::new(file));
        skeleton(&mut archive)?;
        archive.copy("/init", &contents.init)?;
        for program in &contents.programs {
            let name = program
                .file_name()
                .context("a program has a name")?
                .to_string_lossy();
            archive.copy(&format!("/usr/bin/{name}"), program)?;
        }
        let mut libraries = BTreeSet::new();
        for name in &contents.tools {
            let host = host::find(name).with_context(|| format!("no {name} on this host"))?;
            archive.copy(&format!("/usr/bin/{name}"), &host)?;
            libraries.extend(needed(&host)?);
            for plugin in contents.plugins.get(name).into_iter().flatten() {
                let file = host::library_directory(&host).join(plugin);
                archive.copy(&format!("{LIBRARIES}/{plugin}"), &file)?;
                libraries.extend(needed(&file)?);
            }
        }
        for library in &libraries {
            let place = placed(library);
            if !archive.has(&place) {
                archive.copy(&place, library)?;
            }
        }
        if contents.tools.iter().any(|tool| tool == "busybox") {
            applets(&mut archive)?;
        }
        if let Some((from, to)) = &contents.tree {
            tree(&mut archive, from, to)?;
        }
        let file = archive.finish()?.into_inner().context("flush")?;
        file.persist(path)
            .with_context(|| path.display().to_string())?;
        Ok(Self {
            path: path.to_owned(),
        })
    }
}

fn skeleton(archive: &mut Newc<impl std::io::Write>) -> Result<()> {
    for directory in [
        "/dev",
        "/etc",
        "/mnt",
        "/proc",
        "/root",
        "/run",
        "/sys",
        "/tmp",
        "/usr/bin",
        "/usr/lib",
        "/usr/lib64",
        "/usr/sbin",
        "/var/lib",
        "/var/log",
    ] {
        archive.directory(directory)?;
    }
    skeleton_links(archive)?;
    archive.file(
        "/etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    )?;
    archive.file("/etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    archive.file("/etc/hosts", 0o644, b"127.0.0.1 localhost guest\n")
}

/// Adds the links of a merged /usr, and the device node that the kernel opens for init before anything is mounted.
///
/// # Errors
/// Writing.
pub fn skeleton_links(archive: &mut Newc<impl std::io::Write>) -> Result<()> {
    for (link, target) in [
        ("/bin", "usr/bin"),
        ("/sbin", "usr/sbin"),
        ("/lib", "usr/lib"),
        ("/lib64", "usr/lib64"),
        ("/var/run", "/run"),
    ] {
        archive.link(link, target)?;
    }
    archive.character("/dev/console", 0o600, (5, 1))
}

/// Adds busybox's applets, except where a program of that name exists.
///
/// # Errors
/// busybox does not run; writing.
pub fn applets(archive: &mut Newc<impl std::io::Write>) -> Result<()> {
    let list = cmd::output(host::command("busybox").arg("--list"))?;
    for applet in list.lines().filter(|applet| !applet.is_empty()) {
        let path = format!("/usr/bin/{applet}");
        if !archive.has(&path) && !archive.has(&format!("/usr/sbin/{applet}")) {
            archive.link(&path, "busybox")?;
        }
    }
    Ok(())
}

/// Adds a tree of the host: directories, files, links.
///
/// # Errors
/// Reading and writing.
pub fn tree(archive: &mut Newc<impl std::io::Write>, from: &Path, to: &str) -> Result<()> {
    if !to.is_empty() {
        archive.directory(to)?;
    }
    let mut entries: Vec<_> = fs::read_dir(from)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let place = format!("{to}/{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            tree(archive, &entry.path(), &place)?;
        } else if kind.is_file() {
            archive.copy(&place, &entry.path())?;
        } else if kind.is_symlink() {
            let target = fs::read_link(entry.path())?;
            archive.link(&place, &target.to_string_lossy())?;
        }
    }
    Ok(())
}

/// The libraries that a program needs, including its loader, according to `ldd`.
fn needed(program: &Path) -> Result<Vec<PathBuf>> {
    let mut command = Command::new("ldd");
    command.arg(program).env("LC_ALL", "C");
    if let Some(libraries) = host::libraries(program) {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    let output = command.output().context("ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if text.contains("not a dynamic executable") || errors.contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    if text.contains("statically linked") {
        return Ok(Vec::new());
    }
    libraries(&text).with_context(|| format!("libraries of {}", program.display()))
}

fn libraries(ldd: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in ldd.lines().map(str::trim) {
        if line.contains("not found") {
            bail!("{line}");
        }
        let path = line
            .split(" => ")
            .last()
            .and_then(|rest| rest.split(" (").next());
        if let Some(path) = path.filter(|path| path.starts_with('/')) {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

/// Destination of a library.
fn placed(library: &Path) -> String {
    merged(&library.display().to_string())
}

/// Destination of a file: some are named `/lib/…` or `/bin/…`, and the image has a merged /usr.
pub fn merged(path: &str) -> String {
    let moved = ["/bin/", "/sbin/", "/lib/", "/lib64/"];
    if moved.iter().any(|start| path.starts_with(start)) {
        return format!("/usr{path}");
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{libraries, placed};

    #[test]
    fn ldd_is_understood() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                    \tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected: Vec<PathBuf> = vec![
            "/lib/x86_64-linux-gnu/libm.so.6".into(),
            "/lib64/ld-linux-x86-64.so.2".into(),
        ];
        assert_eq!(libraries(text).unwrap(), expected);
        assert!(libraries("\tlibx.so => not found\n").is_err());
    }

    #[test]
    fn libraries_go_below_usr() {
        assert_eq!(placed(Path::new("/lib64/ld.so")), "/usr/lib64/ld.so");
        assert_eq!(placed(Path::new("/usr/lib/x.so")), "/usr/lib/x.so");
        assert_eq!(placed(Path::new("/opt/x.so")), "/opt/x.so");
    }
}
