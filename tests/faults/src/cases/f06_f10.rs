//! Classes F06 to F10.

use crate::cases;

cases! {}
