//! Enums that are displayed and parsed by name.

/// Implements `Display` and `FromStr` for an enum with the constant `ALL` and the method `name`, and defines the error
/// of an unknown name, whose message lists the names.
macro_rules! by_name {
    ($kind:ident, $(#[$doc:meta])* $unknown:ident, $message:literal) => {
        impl std::fmt::Display for $kind {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        #[error($message)]
        pub struct $unknown(String);

        impl std::str::FromStr for $kind {
            type Err = $unknown;

            fn from_str(name: &str) -> Result<Self, $unknown> {
                let known = Self::ALL.into_iter().find(|known| known.name() == name);
                known.ok_or_else(|| $unknown(name.to_owned()))
            }
        }
    };
}

pub(crate) use by_name;
