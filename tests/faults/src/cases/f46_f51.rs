//! Classes F46 to F51.

use crate::cases;

cases! {}
