//! Tests of the codec as a whole.

mod requests;
mod streams;
mod writing;
