//! Classes F36 to F40.

use crate::cases;

cases! {}
