//! Classes F41 to F45.

use crate::cases;

cases! {}
