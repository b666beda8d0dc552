//! A value that stays out of logs, errors and dumps.

use std::fmt;

use zeroize::Zeroize;

/// Holds a secret: prints as `Secret(..)`, is neither `Clone` nor `Serialize`, and is zeroized on drop.
///
/// Zeroizing covers the value where it lies. A secret must therefore be put in before it is moved about, and
/// a buffer must not be grown while it holds one.
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself. Every caller is a place where it could leak.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    struct Noticed<'a>(&'a Cell<bool>);

    impl Zeroize for Noticed<'_> {
        fn zeroize(&mut self) {
            self.0.set(true);
        }
    }

    #[test]
    fn dropping_zeroizes() {
        let zeroized = Cell::new(false);
        let secret = Secret::new(Noticed(&zeroized));
        assert!(!zeroized.get());
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        drop(secret);
        assert!(zeroized.get());
    }
}
