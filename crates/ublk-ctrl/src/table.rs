//! The table of operations: one row for each command of the driver and each action on the nodes.
//!
//! `table!(consumer)` passes the rows to a macro. Consumers make `Operation` with its names and rules (`operation.rs`),
//! `Command` and the typed calls of `Controller` (`command.rs`), and `Control::call` (`control.rs`), which passes a command
//! to the method of `Control` with the call's name and arguments.
//!
//! A row has:
//!
//! * what the operation does, in one line;
//! * its name in messages, and how the device follows it (`Phrase`);
//! * the driver's opcode;
//! * the first kernel with the command, if no feature flag announces it or a device may lack it;
//! * what to do about EINTR (`OnEintr`);
//! * for a command, what else its caller must know, and the call: its arguments without the deadline, the type of its
//!   answer (the content of a `Reply`), and the device that the arguments name.
#![forbid(unsafe_code)]

macro_rules! table {
    ($consumer:ident) => {
        $consumer! {
            /// Opens `/dev/ublk-control` and a ring for it.
            Open: "open control", Of, -, -, Report;

            /// Queries the kernel's features (GET_FEATURES, Linux 6.5).
            Features: "get features", Of, UBLK_U_CMD_GET_FEATURES, -, Reissue,
                /// # Errors
                /// [`Error::TooOld`] before Linux 6.5.
                features -> Features, of None;

            /// Adds a device (ADD_DEV), after the requested features were compared with the kernel's.
            Add: "add", Bare, UBLK_U_CMD_ADD_DEV, -, Reissue,
                /// Check [`CheckedSpec::refused`] for features that the kernel dropped without an error.
                ///
                /// # Errors
                /// [`Error::Unsupported`], [`Error::IdInUse`], [`Error::DeviceLimit`], [`Error::NoPermission`] …
                add(spec: CheckedSpec) -> Geometry, of spec.spec().id;

            /// Sets the parameters of a new device (SET_PARAMS), based on the geometry that the kernel returned.
            SetParams: "set parameters", Of, UBLK_U_CMD_SET_PARAMS, -, Report,
                /// # Errors
                /// [`Error::Busy`] if the device already has a disk, [`Error::Refused`] …
                set_params(spec: CheckedSpec, geometry: Geometry) -> (), of Some(geometry.dev_id());

            /// Queries the parameters of a device (GET_PARAMS); there are none before SET_PARAMS.
            GetParams: "get parameters", Of, UBLK_U_CMD_GET_PARAMS, -, Reissue,
                /// Takes the device mutex: waits while the device starts or stops.
                ///
                /// # Errors
                /// [`Error::NoSuchDevice`] …
                get_params(id: DevId) -> Option<DeviceParams>, of Some(*id);

            /// Starts a device (START_DEV); process `server_pid` must be fetching all of its tags.
            Start: "start", Bare, UBLK_U_CMD_START_DEV, -, Reissue,
                /// # Errors
                /// [`Error::TimedOut`] if a tag is not fetched, [`Error::Busy`], [`Error::Refused`] …
                start(id: DevId, server_pid: u32) -> (), of Some(*id);

            /// Stops a device (STOP_DEV); waits for the requests in flight.
            Stop: "stop", Bare, UBLK_U_CMD_STOP_DEV, -, Reissue,
                /// # Errors
                /// [`Error::TimedOut`] if the server does not answer its requests, [`Error::NoSuchDevice`] …
                stop(id: DevId) -> (), of Some(*id);

            /// Deletes one device (DEL_DEV); waits until its last reference is dropped.
            Delete: "delete", Bare, UBLK_U_CMD_DEL_DEV, -, ReissueUntilGone,
                /// There is no call that deletes all devices (L32).
                ///
                /// # Errors
                /// [`Error::TimedOut`] while it is open, [`Error::NoSuchDevice`] …
                delete(id: DevId) -> (), of Some(*id);

            /// Queries the kernel's information about a device (GET_DEV_INFO); never takes the device mutex.
            Info: "get info", Of, UBLK_U_CMD_GET_DEV_INFO, -, Reissue,
                /// # Errors
                /// [`Error::NoSuchDevice`] …
                info(id: DevId) -> Geometry, of Some(*id);

            /// Queries the CPUs that submit to a hw queue (GET_QUEUE_AFFINITY); never takes the device mutex.
            Affinity: "get queue affinity", Of, UBLK_U_CMD_GET_QUEUE_AFFINITY, -, Reissue,
                /// # Errors
                /// [`Error::NoSuchDevice`], [`Error::Refused`] for a queue that does not exist …
                affinity(id: DevId, queue: QueueId) -> CpuMask, of Some(*id);

            /// Starts the recovery of a device whose server is gone (START_USER_RECOVERY).
            StartRecovery: "start recovery", Of, UBLK_U_CMD_START_USER_RECOVERY, -, Reissue,
                /// Waits until the device is quiesced or failing I/O, and the driver has released the old server.
                ///
                /// # Errors
                /// [`Error::WrongState`] if the device stays live or dead until the deadline, [`Error::Busy`] if its
                /// old server still has it open, [`Error::Refused`] with EINVAL if it was created without recovery …
                start_recovery(id: DevId) -> (), of Some(*id);

            /// Makes a device live again (END_USER_RECOVERY); process `server_pid` must be fetching all of its tags.
            EndRecovery: "end recovery", Of, UBLK_U_CMD_END_USER_RECOVERY, -, Reissue,
                /// # Errors
                /// [`Error::TimedOut`] if a tag is not fetched, [`Error::Busy`], [`Error::Refused`] …
                end_recovery(id: DevId, server_pid: u32) -> (), of Some(*id);

            /// Holds a device's I/O for a new server (QUIESCE_DEV, Linux 6.16). Only a recovery resumes it.
            Quiesce: "quiesce", Bare, UBLK_U_CMD_QUIESCE_DEV, "6.16", Report,
                /// # Errors
                /// [`Error::Unsupported`], [`Error::UnknownCommand`] for a device without the feature …
                quiesce(id: DevId) -> (), of Some(*id);

            /// Changes the size of a live device, in bytes (UPDATE_SIZE, Linux 6.16).
            UpdateSize: "resize", Bare, UBLK_U_CMD_UPDATE_SIZE, "6.16", Reissue,
                /// # Errors
                /// [`Error::Unsupported`], [`Error::WrongState`], [`Error::Spec`] for a size that is not a multiple of
                /// the sector size …
                update_size(id: DevId, size: u64) -> (), of Some(*id);

            /// Stops a device if it is not open (TRY_STOP_DEV, Linux 7.0).
            TryStop: "stop if unused", Colon, UBLK_U_CMD_TRY_STOP_DEV, "7.0", Reissue,
                /// # Errors
                /// [`Error::Unsupported`], [`Error::Busy`] while it is open …
                try_stop(id: DevId) -> (), of Some(*id);

            /// Deletes a device without waiting until it is closed (DEL_DEV_ASYNC, Linux 6.9).
            DeleteAsync: "delete without waiting", Colon, UBLK_U_CMD_DEL_DEV_ASYNC, "6.9", ReissueUntilGone,
                /// Its number stays in use until then. An unprivileged device is deleted by DEL_DEV, which waits.
                ///
                /// # Errors
                /// [`Error::UnknownCommand`] before Linux 6.9, [`Error::NoSuchDevice`] …
                delete_async(id: DevId) -> (), of Some(*id);

            /// Registers a whole memory file: descriptor `fd` of process `pid` (REG_BUF, Linux 7.1).
            RegisterMemory: "register memory", Of, UBLK_U_CMD_REG_BUF, "7.1", Report,
                /// The process, which may be another than the issuer, has the file open for reading and writing. For a
                /// file of this process there is [`Controller::share_memory`].
                ///
                /// # Errors
                /// [`Error::Unsupported`] before Linux 7.1, [`Error::Refused`] for another kind of file …
                share_descriptor(id: DevId, pid: u32, fd: u32) -> Vec<SharedBuffer>, of Some(*id);

            /// Unregisters memory that is shared with a device's clients (UNREG_BUF, Linux 7.1).
            UnregisterMemory: "unregister memory", Of, UBLK_U_CMD_UNREG_BUF, "7.1", Report;

            /// Opens `/dev/ublkcN`.
            OpenChar: "open the character device", Of, -, -, Report;

            /// Waits until `/dev/ublkbN` exists, can be opened and has `size` bytes (L38).
            ProveReady: "wait until ready", Colon, -, -, Report,
                /// A controller in this process does not open the device
                /// ([`Nodes::see_ready`](crate::nodes::Nodes::see_ready)); one in another process does, and also sees
                /// the result of the partition scan.
                ///
                /// # Errors
                /// [`Error::TimedOut`], [`Error::WrongSize`], [`Error::NoPermission`] …
                prove_ready(id: DevId, size: u64) -> (), of Some(*id);

            /// Writes back the dirty data of `/dev/ublkbN`, whose server must be running.
            Sync: "sync", Bare, -, -, Report,
                /// STOP_DEV would lose this data on a recoverable device. May block beyond any deadline, so issue it
                /// from a helper.
                ///
                /// # Errors
                /// [`Error::Refused`] with the errno of the write-back, [`Error::NoPermission`] …
                sync(id: DevId) -> (), of Some(*id);

            /// Opens `/dev/ublkbN` to see who uses it.
            Claim: "check the users of", Bare, -, -, Report;

            /// Disables the I/O scheduler of `/dev/ublkbN`, if it has one.
            NoScheduler: "disable the I/O scheduler", Of, -, -, Report,
                /// A child process does this, and waits until no request is in flight: see
                /// [`Nodes::no_scheduler_by_child`](crate::nodes::Nodes::no_scheduler_by_child).
                ///
                /// # Errors
                /// [`Error::NoPermission`], [`Error::Refused`] by sysfs, [`Error::TimedOut`] while requests are in
                /// flight.
                no_scheduler(id: DevId) -> (), of Some(*id);

            /// Lists the devices.
            List: "list devices", Of, -, -, Report;
        }
    };
}
pub(crate) use table;
