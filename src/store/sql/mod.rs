//! SQL databases: one row by a key, as a JSON object, from SQLite, MySQL, MariaDB or PostgreSQL; and
//! tables that the gateway creates itself.

mod circuit;
mod count;
mod database;
mod dsn;
mod lookup;
mod mysql;
mod postgres;
mod prepared;
mod run;
mod settings;
mod sqlite;
mod table;
mod value;

pub use self::{
    count::Decide,
    database::Sql,
    lookup::{Lookup, Row, quote, table_name},
    run::{Bind, SqlError, Statement},
    settings::{Driver, Settings, Target},
    table::{ColumnType, ExistingColumn, ExistingTable, TableDefinition},
};
