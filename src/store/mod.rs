//! What is opened once and used by many: certificates, HTTP clients. (Redis and SQL will follow.)

pub mod http;
pub mod tls;
