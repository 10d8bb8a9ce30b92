//! Classes F11 to F15.

use crate::cases;

cases! {}
