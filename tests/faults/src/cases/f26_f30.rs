//! Classes F26 to F30.

use crate::cases;

cases! {}
