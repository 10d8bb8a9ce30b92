//! Classes F01 to F05.

use crate::cases;

cases! {}
