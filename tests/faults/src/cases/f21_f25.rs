//! Classes F21 to F25.

use crate::cases;

cases! {}
