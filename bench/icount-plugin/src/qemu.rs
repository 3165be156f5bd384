//! The used part of version 1 of QEMU's plugin interface (include/qemu/qemu-plugin.h, v7.2).
//!
//! `unsafe` is allowed for the declarations of C functions, which `plugin.rs` calls.
#![expect(unsafe_code, reason = "QEMU's plugin interface is C")]

use std::ffi::{c_char, c_int, c_uint, c_void};

/// `qemu_plugin_id_t`.
pub type Id = u64;

/// `struct qemu_plugin_tb`: a block being translated.
#[repr(C)]
pub struct Tb {
    _opaque: [u8; 0],
}

/// `struct qemu_plugin_insn`: one of its instructions.
#[repr(C)]
pub struct Insn {
    _opaque: [u8; 0],
}

/// `qemu_info_t`, in its form for system emulation.
#[repr(C)]
pub struct Info {
    /// Name of the emulated architecture.
    pub target_name: *const c_char,
    /// Oldest interface version that QEMU accepts.
    pub version_min: c_int,
    /// Interface version of QEMU.
    pub version_cur: c_int,
    /// Whether a whole system is emulated; the two fields below are only valid then.
    pub system_emulation: bool,
    /// Number of vCPUs at start.
    pub smp_vcpus: c_int,
    /// Maximum number of vCPUs.
    pub max_vcpus: c_int,
}

/// `QEMU_PLUGIN_INLINE_ADD_U64`.
pub const INLINE_ADD_U64: c_int = 0;
/// `QEMU_PLUGIN_CB_NO_REGS`.
pub const CB_NO_REGS: c_int = 0;

/// `qemu_plugin_vcpu_tb_trans_cb_t`.
pub type TbTransCb = extern "C" fn(Id, *mut Tb);
/// `qemu_plugin_vcpu_udata_cb_t`.
pub type VcpuUdataCb = extern "C" fn(c_uint, *mut c_void);
/// `qemu_plugin_udata_cb_t`.
pub type UdataCb = extern "C" fn(Id, *mut c_void);

unsafe extern "C" {
    pub fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, cb: TbTransCb);
    pub fn qemu_plugin_register_vcpu_tb_exec_cb(
        tb: *mut Tb,
        cb: VcpuUdataCb,
        flags: c_int,
        userdata: *mut c_void,
    );
    pub fn qemu_plugin_register_vcpu_tb_exec_inline(
        tb: *mut Tb,
        op: c_int,
        ptr: *mut c_void,
        imm: u64,
    );
    pub fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut Insn,
        cb: VcpuUdataCb,
        flags: c_int,
        userdata: *mut c_void,
    );
    pub fn qemu_plugin_tb_n_insns(tb: *const Tb) -> usize;
    pub fn qemu_plugin_tb_vaddr(tb: *const Tb) -> u64;
    pub fn qemu_plugin_tb_get_insn(tb: *const Tb, idx: usize) -> *mut Insn;
    pub fn qemu_plugin_insn_data(insn: *const Insn) -> *const c_void;
    pub fn qemu_plugin_insn_size(insn: *const Insn) -> usize;
    pub fn qemu_plugin_insn_vaddr(insn: *const Insn) -> u64;
    pub fn qemu_plugin_register_atexit_cb(id: Id, cb: UdataCb, userdata: *mut c_void);
}
