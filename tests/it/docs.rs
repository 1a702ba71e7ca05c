//! The documentation: what it links to is there, what it shows is valid, what it names exists, and
//! its commands are run.

mod commands;
mod configurations;
mod links;
mod markdown;
mod names;
mod reference;
mod shell;
