//! A Linux block device in user space: build a device from a backend.
