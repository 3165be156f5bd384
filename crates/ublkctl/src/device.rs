//! `add`: converts its arguments to a device, and creates it.

use crate::cli::{Add, Backend, Files, MemberPath, absolute};
use crate::output::{exit_code, print_failure, put};
use std::process::ExitCode;
use ublk_daemon::failure::Failure;
use ublk_daemon::front::{self, Foreground, Wanted};
use ublk_daemon::link::message::Lifetime;
use ublk_daemon::link::peer::this_program;
use ublk_daemon::privilege;
use ublk_daemon::spec::{self, AddSpec, BackendSpec, Member, Parameters, ServeOptions, Serving};

/// The members of a device over several files.
fn members(files: &Files) -> Result<spec::Files, Failure> {
    let member = |member: &MemberPath| {
        Ok(Member {
            path: absolute(Some(&member.path))?.unwrap_or_default(),
            offset: member.offset,
            length: member.length,
        })
    };
    Ok(spec::Files {
        files: files
            .files
            .iter()
            .map(member)
            .collect::<Result<_, Failure>>()?,
        buffered: files.buffered,
        discard: !files.no_discard,
        force: files.force,
        bytes: 0,
    })
}

/// The common arguments of `add`, the backend, and the backend's default block size; 0 for that of the backing store.
fn parts(backend: &Backend) -> Result<(&Add, BackendSpec, u32), Failure> {
    const BLOCK: u32 = 512;
    Ok(match backend {
        Backend::Null { add, size } => (add, BackendSpec::Null { size: *size }, BLOCK),
        Backend::Mem { add, size } => (add, BackendSpec::Mem { size: *size }, BLOCK),
        Backend::Fault { add, size, faults } => {
            let (size, plan) = (*size, faults.plan());
            (add, BackendSpec::Fault { size, plan }, BLOCK)
        }
        Backend::File {
            add,
            path,
            offset,
            length,
            buffered,
            no_discard,
            force,
            integrity_file,
            create: _,
            size: _,
        } => {
            let absolute = std::path::absolute(path)
                .map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
            let backend = BackendSpec::File {
                path: absolute,
                offset: *offset,
                length: *length,
                buffered: *buffered,
                discard: !no_discard,
                force: *force,
                integrity_file: crate::cli::absolute(integrity_file.as_deref())?,
            };
            (add, backend, 0)
        }
        Backend::Linear { add, files } => {
            let files = members(files)?;
            (add, BackendSpec::Linear { files }, 0)
        }
        Backend::Stripe { add, files, chunk } => {
            let (files, chunk) = (members(files)?, *chunk);
            (add, BackendSpec::Stripe { files, chunk }, 0)
        }
        Backend::Nbd {
            add,
            uri,
            retry,
            request_timeout,
            wait_for_server,
            tls,
        } => {
            let backend = BackendSpec::Nbd {
                moving_to: None,
                uri: uri.clone(),
                length: None,
                retry: *retry,
                request_timeout: *request_timeout,
                wait_for_server: *wait_for_server,
                tls: tls.options()?.into(),
            };
            (add, backend, 0)
        }
    })
}

/// The parameters that the arguments of `add` replace.
fn parameters(add: &Add) -> Parameters {
    Parameters {
        no_partition_scan: add.no_partition_scan,
        descriptor_size: add.descriptor_size,
        io_min: add.io_min,
        io_opt: add.io_opt,
        io_boundary: add.io_boundary,
        virt_boundary: add.virt_boundary,
        discard_alignment: add.discard_alignment,
        rotational: add.rotational,
        zones: add.zones(),
        integrity: add.integrity,
    }
}

/// The device that the arguments of `add` describe.
///
/// # Errors
/// A path cannot be made absolute.
pub fn wanted(backend: &Backend) -> Result<Wanted, Failure> {
    let (add, spec, block_size) = parts(backend)?;
    let create = match backend {
        Backend::File {
            create: true, size, ..
        } => *size,
        _ => None,
    };
    let mut options = ServeOptions::DEFAULT;
    options.threads_per_queue = add.threads;
    options.polling = add.poll;
    options.huge_pages = add.huge_pages;
    options.metrics = add.metrics;
    let spec = AddSpec {
        backend: spec,
        id: add.id,
        queues: add.queues,
        depth: add.depth,
        block_size: add.block_size.unwrap_or(block_size),
        max_io_bytes: add.max_io,
        read_only: add.read_only,
        mode: add.mode(),
        auto: add.auto(),
        recovery: add.recovery,
        scheduler: add.scheduler.into(),
        serving: Serving {
            options,
            shm: absolute(add.shm.as_deref())?,
            shm_read_only: add.shm_read_only,
            lock_memory: add.lock_memory,
            total_threads: add.total_threads,
        },
        parameters: Box::new(parameters(add)),
        name: add.name.clone(),
        supervise: add.supervise,
        unprivileged: !privilege::is_privileged(),
        trust_kernel: add.trust_kernel,
    };
    Ok(Wanted {
        spec,
        create,
        reuse: false,
        log: add.log.clone(),
    })
}

/// Creates a device and prints its path; with `--foreground` stays until the device is gone.
///
/// # Errors
/// The device cannot be created, or its path cannot be printed: it is then removed again.
pub fn add(backend: &Backend, json: bool) -> Result<ExitCode, Failure> {
    let (add, _, _) = parts(backend)?;
    let lifetime = if add.foreground {
        Lifetime::Front
    } else {
        Lifetime::Own
    };
    let wanted = wanted(backend)?;
    let (added, device) = front::make(&this_program(), &wanted, lifetime, add.wait.time())?;
    let printed = put(json, &added, || format!("{}\n", added.path.display()));
    if let Err(failure) = printed {
        let path = added.path.display();
        let gone = device.take_back(add.wait.time());
        return Err(match gone {
            Ok(()) => failure.hint(format!("{path} was removed again")),
            Err(e) => failure.hint(format!("{path} is still there: {e}")),
        });
    }
    if add.foreground {
        return Ok(stay(device));
    }
    device.keep()?;
    Ok(ExitCode::SUCCESS)
}

/// Waits until a device whose path was printed is gone. Standard output has its one value already, so the end is reported on
/// standard error and by the exit code.
pub fn stay(device: Foreground) -> ExitCode {
    match device.wait() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            print_failure(&failure);
            exit_code(failure.kind)
        }
    }
}
