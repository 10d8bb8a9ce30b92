//! Classes F16 to F20.

use crate::cases;

cases! {}
