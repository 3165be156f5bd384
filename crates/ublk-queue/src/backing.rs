//! Keeps a handler's memory alive while the driver uses it.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// An owner of the memory that a handler names to the driver.
pub(crate) type Keeper = Arc<dyn Any + Send + Sync>;

/// How a lane gets the owner of the memory that its handler `H` names to the driver and that the driver may access
/// after the answer.
///
/// Only handlers of this crate can have one. Any other handler that wraps one of them has none, and the driver then
/// copies before the answer.
pub struct Backing<H: ?Sized>(Option<fn(&H) -> Option<Keeper>>, PhantomData<fn(&H)>);

impl<H: ?Sized> Backing<H> {
    /// The handler names no memory that it owns.
    pub const NONE: Self = Self(None, PhantomData);

    pub(crate) const fn new(keeper: fn(&H) -> Option<Keeper>) -> Self {
        Self(Some(keeper), PhantomData)
    }

    pub(crate) const fn is_some(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn keeper(&self, handler: &H) -> Option<Keeper> {
        self.0.and_then(|keeper| keeper(handler))
    }
}

impl<H: ?Sized> fmt::Debug for Backing<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Backing").field(&self.is_some()).finish()
    }
}
