//! Elements of the batch commands (7.0), whose length depends on the command's flags.

use crate::marshal::{Plain, Uapi};
use crate::{Error, UBLK_BATCH_F_HAS_BUF_ADDR, UBLK_BATCH_F_HAS_ZONE_LBA, ublk_elem_header};

/// Maximum size of an element in bytes.
pub const ELEM_MAX: usize = 24;
/// Size of an element of FETCH_IO_CMDS in bytes: a tag.
pub const TAG_BYTES: u8 = 2;

/// The optional parts of an element of PREP_IO_CMDS or COMMIT_IO_CMDS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ElemShape {
    /// A buffer address ([`UBLK_BATCH_F_HAS_BUF_ADDR`]), in copy mode.
    pub buf_addr: bool,
    /// The sector at which a zone append was written ([`UBLK_BATCH_F_HAS_ZONE_LBA`]).
    pub zone_lba: bool,
}

/// An element of PREP_IO_CMDS or COMMIT_IO_CMDS. Written by the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[doc(alias = "ublk_elem_buffer")]
pub struct Elem {
    /// Tag, buffer index, result.
    pub header: ublk_elem_header,
    /// Address of the tag's buffer; 0 if the shape has none.
    pub buf_addr: u64,
    /// Absolute sector (512 bytes) at which a zone append was written; 0 if the shape has none.
    pub zone_lba: u64,
}

impl ElemShape {
    /// The shape implied by a command's `flags`; other bits are ignored.
    #[must_use]
    pub const fn from_flags(flags: u16) -> Self {
        Self {
            buf_addr: flags & UBLK_BATCH_F_HAS_BUF_ADDR != 0,
            zone_lba: flags & UBLK_BATCH_F_HAS_ZONE_LBA != 0,
        }
    }

    /// The flags that imply this shape.
    #[must_use]
    pub const fn flags(self) -> u16 {
        let buf_addr = if self.buf_addr {
            UBLK_BATCH_F_HAS_BUF_ADDR
        } else {
            0
        };
        let zone_lba = if self.zone_lba {
            UBLK_BATCH_F_HAS_ZONE_LBA
        } else {
            0
        };
        buf_addr | zone_lba
    }

    /// Size of an element in bytes: the `elem_bytes` that the driver requires (8, 16 or 24).
    #[must_use]
    pub const fn bytes(self) -> u8 {
        8 + 8 * self.buf_addr as u8 + 8 * self.zone_lba as u8
    }

    fn check(self, got: usize) -> Result<(), Error> {
        let want = usize::from(self.bytes());
        if want != got {
            return Err(Error::Size {
                what: "ublk_elem_buffer",
                want,
                got,
            });
        }
        Ok(())
    }

    /// Writes an element to `out`, which must be exactly [`ElemShape::bytes`] long.
    ///
    /// # Errors
    /// [`Error::Size`] for another length; [`Error::Rule`] if the element has an address or a sector that this shape
    /// lacks. Nothing is written then.
    pub fn encode(self, elem: &Elem, out: &mut [u8]) -> Result<(), Error> {
        self.check(out.len())?;
        let rule = "0, since elements of this shape lack it";
        if !self.buf_addr && elem.buf_addr != 0 {
            return Err(Error::Rule {
                what: "buffer address",
                value: elem.buf_addr,
                rule,
            });
        }
        if !self.zone_lba && elem.zone_lba != 0 {
            return Err(Error::Rule {
                what: "zone append sector",
                value: elem.zone_lba,
                rule,
            });
        }
        let mut rest = elem.header.write_head(out)?;
        if self.buf_addr {
            let (place, after) = rest.split_at_mut(8);
            elem.buf_addr.put(place);
            rest = after;
        }
        if self.zone_lba {
            elem.zone_lba.put(rest);
        }
        Ok(())
    }

    /// Reads an element from `bytes`, which must be exactly [`ElemShape::bytes`] long.
    ///
    /// # Errors
    /// [`Error::Size`] for another length.
    pub fn decode(self, bytes: &[u8]) -> Result<Elem, Error> {
        self.check(bytes.len())?;
        let (header, mut rest) = ublk_elem_header::read_head(bytes)?;
        let mut elem = Elem {
            header,
            ..Elem::default()
        };
        if self.buf_addr {
            let (place, after) = rest.split_at(8);
            elem.buf_addr = u64::get(place);
            rest = after;
        }
        if self.zone_lba {
            elem.zone_lba = u64::get(rest);
        }
        Ok(elem)
    }
}

/// Reads the tags that a completion of FETCH_IO_CMDS delivered. `bytes` is the filled part of the provided buffer,
/// according to the completion's result.
///
/// # Errors
/// [`Error::Rule`] if the length is odd.
pub fn tags(bytes: &[u8]) -> Result<impl ExactSizeIterator<Item = u16> + '_, Error> {
    if !bytes.len().is_multiple_of(usize::from(TAG_BYTES)) {
        let value = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        return Err(Error::Rule {
            what: "bytes of tags",
            value,
            rule: "a multiple of 2",
        });
    }
    Ok(bytes.chunks_exact(usize::from(TAG_BYTES)).map(u16::get))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_those_of_the_driver() {
        let bytes: [u8; 4] = core::array::from_fn(|flags| {
            ElemShape::from_flags(u16::try_from(flags).unwrap()).bytes()
        });
        assert_eq!(bytes, [8, 16, 16, 24]);
        assert_eq!(ElemShape::from_flags(0xfffc), ElemShape::default());
    }

    #[test]
    fn address_comes_before_sector() {
        let header = ublk_elem_header {
            tag: 1,
            buf_index: 2,
            result: -5,
        };
        let elem = Elem {
            header,
            buf_addr: 0x1111,
            zone_lba: 0x2222,
        };
        let shape = ElemShape {
            buf_addr: true,
            zone_lba: true,
        };
        let mut out = [0; 24];
        shape.encode(&elem, &mut out).unwrap();
        assert_eq!(out[8..16], 0x1111_u64.to_ne_bytes());
        assert_eq!(out[16..], 0x2222_u64.to_ne_bytes());
        assert_eq!(shape.decode(&out), Ok(elem));
        let lba = ElemShape {
            buf_addr: false,
            zone_lba: true,
        };
        assert!(
            lba.encode(&elem, &mut out[..16]).is_err(),
            "the address would be lost"
        );
        assert!(shape.encode(&elem, &mut out[..16]).is_err());
        assert!(lba.decode(&out).is_err());
    }

    #[test]
    fn tags_come_in_pairs_of_bytes() {
        let mut bytes = [0; 4];
        bytes[..2].copy_from_slice(&7_u16.to_ne_bytes());
        bytes[2..].copy_from_slice(&4095_u16.to_ne_bytes());
        assert!(tags(&bytes).unwrap().eq([7, 4095]));
        assert!(tags(&bytes[..3]).is_err());
    }
}
