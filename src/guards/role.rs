//! Which texts of a request an entry looks at.

use crate::{config::choices::GuardRole, dialect::texts::Role};

/// Whether a list of roles has this one; an empty list has all.
pub fn in_roles(roles: &[GuardRole], role: Role) -> bool {
    let role = match role {
        Role::System => GuardRole::System,
        Role::User => GuardRole::User,
        Role::Assistant => GuardRole::Assistant,
        Role::Tool => GuardRole::Tool,
    };
    roles.is_empty() || roles.contains(&role)
}
