//! The plugin's callbacks and its calls of QEMU.
//!
//! `unsafe` is allowed here: the interface is C. QEMU's pointers (`tb`, `insn`, `info`, `argv`) are only used inside
//! the callback that got them, where they are valid. Pointers given to QEMU point into [`STATE`] or leaked counters,
//! which live as long as the process.
#![expect(unsafe_code, reason = "QEMU's plugin interface is C")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::Write;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::args::Args;
use crate::count::{self, Class, Counters, Places};
use crate::hot::Hot;
use crate::qemu;

/// The marker: `nopl 0x11223344(%rax,%rax,1)`, which no compiler generates.
const MARKER: [u8; 8] = [0x0f, 0x1f, 0x84, 0x00, 0x44, 0x33, 0x22, 0x11];

/// The interface version that we use.
// SAFETY: no other object of the QEMU process exports this name: plugins are loaded RTLD_LOCAL.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 1;

static STATE: OnceLock<State> = OnceLock::new();

struct State {
    places: Places,
    counters: Vec<Counters>,
    marks: AtomicU64,
    out: Mutex<File>,
    hot: Option<Mutex<(Hot, File)>>,
}

impl State {
    fn new(args: &Args, vcpus: usize) -> Result<Self, String> {
        let create = |path| File::create(path).map_err(|error| format!("{path:?}: {error}"));
        let hot = args.hot.as_ref().map(create).transpose()?;
        Ok(Self {
            places: Places {
                server: args.lo..args.hi,
                user_copy: args.user_copy.clone(),
                page_copy: args.page_copy.clone(),
            },
            counters: (0..vcpus).map(|_| Counters::default()).collect(),
            marks: AtomicU64::new(0),
            out: Mutex::new(create(&args.out)?),
            hot: hot.map(|file| Mutex::new((Hot::default(), file))),
        })
    }

    /// With one vCPU there is one thread, and translated code may add inline. With several, each may have its own
    /// thread, and adds to its own counters in a callback.
    fn alone(&self) -> bool {
        self.counters.len() == 1
    }

    fn tell(&self, what: &str) {
        let line = format!("{what} {}\n", count::line(&self.counters));
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = out.write_all(line.as_bytes()) {
            eprintln!("icount: {error}");
        }
    }
}

/// Called by QEMU when it loads the plugin.
///
/// # Safety
/// Only QEMU may call this: `info` must be a valid `qemu_info_t` and `argv` must hold `argc` NUL-terminated strings,
/// for the duration of the call.
// SAFETY: no other object of the QEMU process exports this name: plugins are loaded RTLD_LOCAL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: qemu::Id,
    info: *const qemu::Info,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    // SAFETY: QEMU passes a valid structure (contract above), laid out as declared for v1.
    let info = unsafe { &*info };
    if !info.system_emulation {
        eprintln!("icount: only for emulation of a whole system");
        return -1;
    }
    let vcpus = usize::try_from(info.max_vcpus).unwrap_or(1).max(1);
    let word = |index| {
        // SAFETY: `index` is below `argc`, and argv has argc elements (contract above).
        let element = unsafe { argv.add(index) };
        // SAFETY: an element of the array, initialised and readable (same).
        let pointer = unsafe { *element };
        // SAFETY: each element is a NUL-terminated string that outlives this call (same).
        unsafe { CStr::from_ptr(pointer) }
    };
    let words = (0..usize::try_from(argc).unwrap_or(0)).map(word);
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    let state =
        Args::parse(words.iter().map(AsRef::as_ref)).and_then(|args| State::new(&args, vcpus));
    match state {
        Ok(state) => {
            if STATE.set(state).is_err() {
                eprintln!("icount: loaded twice");
                return -1;
            }
        }
        Err(error) => {
            eprintln!("icount: {error}");
            return -1;
        }
    }
    // SAFETY: `id` is the one that QEMU passed for this plugin, and the function pointer is static.
    unsafe { qemu::qemu_plugin_register_vcpu_tb_trans_cb(id, translated) };
    // SAFETY: as above; the callback ignores its data pointer, so null is fine.
    unsafe { qemu::qemu_plugin_register_atexit_cb(id, at_exit, ptr::null_mut()) };
    0
}

/// Called by QEMU for each block that it translates.
extern "C" fn translated(_id: qemu::Id, tb: *mut qemu::Tb) {
    let Some(state) = STATE.get() else { return };
    // SAFETY: `tb` is valid during this callback.
    let address = unsafe { qemu::qemu_plugin_tb_vaddr(tb) };
    // SAFETY: as above.
    let length = unsafe { qemu::qemu_plugin_tb_n_insns(tb) };
    let class = state.places.class(address);
    if state.alone() {
        let counter = state.counters[0].of(class).as_ptr().cast();
        // SAFETY: `tb` is valid; `counter` is an aligned u64 of a static that is never moved or
        // freed, and with one vCPU only its thread writes it.
        unsafe {
            qemu::qemu_plugin_register_vcpu_tb_exec_inline(
                tb,
                qemu::INLINE_ADD_U64,
                counter,
                length as u64,
            );
        }
    } else {
        let word = ptr::without_provenance_mut(count::pack(class, length));
        // SAFETY: `tb` is valid; the callback uses the pointer as a number only.
        unsafe {
            qemu::qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, qemu::CB_NO_REGS, word);
        }
    }
    if !class.is_kernel() {
        markers(tb, length);
    }
    if class == Class::Server {
        block(state, tb, length);
    }
}

fn markers(tb: *const qemu::Tb, length: usize) {
    for index in 0..length {
        // SAFETY: called inside the callback that got `tb`; `index` is below its length.
        let insn = unsafe { qemu::qemu_plugin_tb_get_insn(tb, index) };
        // SAFETY: `insn` belongs to `tb` and is valid as long.
        let size = unsafe { qemu::qemu_plugin_insn_size(insn) };
        if size != MARKER.len() {
            continue;
        }
        // SAFETY: as above.
        let data = unsafe { qemu::qemu_plugin_insn_data(insn) };
        // SAFETY: the interface gives `size` readable bytes, and `size` is that of the array;
        // bytes need no alignment.
        let bytes: [u8; 8] = unsafe { data.cast::<[u8; 8]>().read() };
        if bytes == MARKER {
            // SAFETY: `insn` is valid, and the callback ignores its data pointer.
            unsafe {
                qemu::qemu_plugin_register_vcpu_insn_exec_cb(
                    insn,
                    marked,
                    qemu::CB_NO_REGS,
                    ptr::null_mut(),
                );
            }
        }
    }
}

/// Adds a counter to a block of the server, if requested.
fn block(state: &State, tb: *mut qemu::Tb, length: usize) {
    let Some(hot) = &state.hot else { return };
    let address = |index| {
        // SAFETY: called inside the callback that got `tb`; `index` is below its length.
        let insn = unsafe { qemu::qemu_plugin_tb_get_insn(tb, index) };
        // SAFETY: `insn` belongs to `tb` and is valid as long.
        unsafe { qemu::qemu_plugin_insn_vaddr(insn) }
    };
    let addresses = (0..length).map(address).collect();
    let mut hot = hot.lock().unwrap_or_else(PoisonError::into_inner);
    let counter = hot.0.counter(addresses).as_ptr();
    // SAFETY: `tb` is valid; `counter` points to a leaked, aligned u64. With several vCPUs unsynchronised additions may
    // be lost: these counts are hints, the totals are separate.
    unsafe {
        qemu::qemu_plugin_register_vcpu_tb_exec_inline(tb, qemu::INLINE_ADD_U64, counter.cast(), 1);
    }
}

extern "C" fn executed(vcpu: c_uint, word: *mut c_void) {
    let Some(state) = STATE.get() else { return };
    let (class, instructions) = count::unpack(word.addr());
    if let Some(counters) = state.counters.get(vcpu as usize) {
        counters.add(class, instructions);
    }
}

extern "C" fn marked(vcpu: c_uint, _data: *mut c_void) {
    let Some(state) = STATE.get() else { return };
    let number = state.marks.fetch_add(1, Ordering::Relaxed);
    state.tell(&format!("mark {number} vcpu {vcpu}"));
    if let Some(hot) = &state.hot {
        let mut hot = hot.lock().unwrap_or_else(PoisonError::into_inner);
        let text = format!("mark {number}\n{}", hot.0.since());
        if let Err(error) = hot.1.write_all(text.as_bytes()) {
            eprintln!("icount: {error}");
        }
    }
}

extern "C" fn at_exit(_id: qemu::Id, _data: *mut c_void) {
    if let Some(state) = STATE.get() {
        state.tell("exit");
    }
}
