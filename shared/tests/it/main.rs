//! Checks of the whole workspace.

mod tidy;
