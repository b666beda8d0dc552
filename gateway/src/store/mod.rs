
pub mod policies;
