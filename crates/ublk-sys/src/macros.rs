//! The two macros that define everything of the C header.
//!
//! A struct defined by [`uapi_struct`] always has layout asserts, marshalling, and a row in the crate's table; a
//! constant defined by [`uapi_consts`] always has a row.

/// Defines a struct of the C header: explicit offsets, no implicit padding.
///
/// `field @ offset: type`; `field | other @ offset: type` for a C union of two names. A field named `hole…` is padding
/// without a name in C.
macro_rules! uapi_struct {
    (
        $(#[$meta:meta])*
        pub struct $name:ident: $size:literal, align $align:literal {
            $(
                $(#[$fmeta:meta])*
                $field:ident $(| $alias:ident)* @ $off:literal: $ty:ty
            ),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[allow(non_camel_case_types, reason = "the C name")]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        pub struct $name {
            $(
                $(#[$fmeta])*
                pub $field: $ty,
            )+
        }

        static_assertions::const_assert_eq!(core::mem::size_of::<$name>(), $size);
        static_assertions::const_assert_eq!(core::mem::align_of::<$name>(), $align);
        $( static_assertions::const_assert_eq!(memoffset::offset_of!($name, $field), $off); )+
        // The fields add up to the whole: no byte is implicit padding.
        static_assertions::const_assert_eq!(0 $(+ core::mem::size_of::<$ty>())+, $size);
        // Marshalled bytes equal those in memory.
        $( static_assertions::const_assert_eq!(
            <$ty as $crate::marshal::Plain>::LEN,
            core::mem::size_of::<$ty>()
        ); )+

        impl $name {
            /// All bytes zero.
            pub const ZERO: Self = Self { $( $field: <$ty as $crate::marshal::Plain>::ZERO ),+ };

            /// The bytes as the kernel reads them, in native byte order.
            #[inline]
            #[must_use]
            pub fn to_bytes(&self) -> [u8; $size] {
                let mut bytes = [0; $size];
                $crate::marshal::Plain::put(self, &mut bytes);
                bytes
            }

            /// The struct with these bytes; every byte pattern is valid.
            #[inline]
            #[must_use]
            pub fn from_bytes(bytes: &[u8; $size]) -> Self {
                $crate::marshal::Plain::get(bytes)
            }
        }

        impl $crate::marshal::sealed::Sealed for $name {}
        impl $crate::marshal::Plain for $name {
            const LEN: usize = $size;
            const ZERO: Self = $name::ZERO;
            #[inline]
            fn put(&self, out: &mut [u8]) {
                $( $crate::marshal::Plain::put(
                    &self.$field,
                    &mut out[$off..$off + core::mem::size_of::<$ty>()],
                ); )+
            }
            #[inline]
            fn get(bytes: &[u8]) -> Self {
                Self { $( $field: $crate::marshal::Plain::get(
                    &bytes[$off..$off + core::mem::size_of::<$ty>()],
                ) ),+ }
            }
        }

        impl $crate::marshal::Uapi for $name {
            const NAME: &'static str = stringify!($name);
            const LAYOUT: $crate::table::Struct = $crate::table::Struct {
                name: stringify!($name),
                size: core::mem::size_of::<$name>(),
                align: core::mem::align_of::<$name>(),
                fields: &[ $(
                    $crate::table::Field {
                        name: $crate::table::c_name(stringify!($field)),
                        offset: memoffset::offset_of!($name, $field),
                        size: core::mem::size_of::<$ty>(),
                    },
                    $( $crate::table::Field {
                        name: stringify!($alias),
                        offset: memoffset::offset_of!($name, $field),
                        size: core::mem::size_of::<$ty>(),
                    }, )*
                )+ ],
                round_trip: $crate::marshal::round_trip::<$name>,
            };
        }
    };
}

/// Defines constants of the C header and their rows in the crate's table.
macro_rules! uapi_consts {
    ($( $(#[$meta:meta])* pub const $name:ident: $ty:ty = $value:expr; )+) => {
        $( $(#[$meta])* pub const $name: $ty = $value; )+

        /// The constants of this file by name.
        #[allow(clippy::cast_sign_loss, clippy::cast_lossless, trivial_numeric_casts,
            reason = "the table holds every constant as C would convert it to unsigned long long")]
        pub(crate) const TABLE: &[(&str, u64)] = &[ $( (stringify!($name), $name as u64) ),+ ];
    };
}
