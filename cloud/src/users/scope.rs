//! What somebody may do, and where: one organisation, and a role at each of its sites.
//!
//! A grant is for a site or for the whole organisation; at a site the greatest of both holds. The store shows a scope's
//! transactions the rows of its sites only (row-level security), so that to narrow a scope is to narrow what can be
//! read and written.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::Role;

/// A role at a site, or (`None`) everywhere in the organisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// `null`: the whole organisation.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required)]
    pub site: Option<Uuid>,
    pub role: Role,
}

/// An organisation, and the role at each site of it that may be seen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scope {
    organisation: Uuid,
    everywhere: Option<Role>,
    sites: BTreeMap<Uuid, Role>,
}

impl Scope {
    /// Of grants in an organisation that has these sites.
    #[must_use]
    pub fn new(organisation: Uuid, sites: &[Uuid], grants: &[Grant]) -> Self {
        let at = |site: Option<Uuid>| grants.iter().filter(move |g| g.site == site).map(|g| g.role).max();
        let everywhere = at(None);
        let role = |site: &Uuid| everywhere.max(at(Some(*site))).map(|role| (*site, role));
        Self { organisation, everywhere, sites: sites.iter().filter_map(role).collect() }
    }

    #[must_use]
    pub const fn organisation(&self) -> Uuid {
        self.organisation
    }

    /// The role for the organisation as a whole: its users, its sites, its audit.
    #[must_use]
    pub const fn everywhere(&self) -> Option<Role> {
        self.everywhere
    }

    /// The role at a site; `None` for a site that is not to be seen.
    #[must_use]
    pub fn at(&self, site: Uuid) -> Option<Role> {
        self.sites.get(&site).copied()
    }

    /// The greatest role anywhere.
    #[must_use]
    pub fn greatest(&self) -> Option<Role> {
        self.everywhere.max(self.sites.values().copied().max())
    }

    /// The sites that may be seen.
    pub fn sites(&self) -> impl Iterator<Item = Uuid> {
        self.sites.keys().copied()
    }

    /// Only where the role is at least this one.
    #[must_use]
    pub fn at_least(&self, least: Role) -> Self {
        let enough = |role: &Role| *role >= least;
        Self {
            organisation: self.organisation,
            everywhere: self.everywhere.filter(enough),
            sites: self.sites.iter().filter(|(_, role)| enough(role)).map(|(site, role)| (*site, *role)).collect(),
        }
    }

    /// No more than this role, and at this site only, if one is named: what an API key may of what its owner may.
    #[must_use]
    pub fn at_most(&self, most: Role, site: Option<Uuid>) -> Self {
        let here = |at: &Uuid| site.is_none_or(|site| site == *at);
        Self {
            organisation: self.organisation,
            everywhere: self.everywhere.map(|role| role.min(most)).filter(|_| site.is_none()),
            sites: self.sites.iter().filter(|(at, _)| here(at)).map(|(at, role)| (*at, (*role).min(most))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORGANISATION: Uuid = Uuid::from_u128(1);
    const A: Uuid = Uuid::from_u128(10);
    const B: Uuid = Uuid::from_u128(11);
    const C: Uuid = Uuid::from_u128(12);

    fn scope(grants: &[(Option<Uuid>, Role)]) -> Scope {
        let grants: Vec<Grant> = grants.iter().map(|(site, role)| Grant { site: *site, role: *role }).collect();
        Scope::new(ORGANISATION, &[A, B], &grants)
    }

    #[test]
    fn the_greater_grant_holds() {
        use Role::{Admin, Operator, Supervisor, Viewer};
        for (grants, everywhere, at_a, at_b) in [
            (&[][..], None, None, None),
            (&[(None, Viewer)], Some(Viewer), Some(Viewer), Some(Viewer)),
            (&[(Some(A), Operator)], None, Some(Operator), None),
            (&[(None, Viewer), (Some(A), Supervisor)], Some(Viewer), Some(Supervisor), Some(Viewer)),
            (&[(None, Admin), (Some(A), Viewer)], Some(Admin), Some(Admin), Some(Admin)),
            (&[(Some(C), Admin)], None, None, None),
        ] {
            let scope = scope(grants);
            assert_eq!((scope.everywhere(), scope.at(A), scope.at(B)), (everywhere, at_a, at_b), "{grants:?}");
            assert_eq!(scope.greatest(), everywhere.max(at_a).max(at_b), "{grants:?}");
            assert_eq!(scope.at(C), None);
        }
    }

    #[test]
    fn a_scope_is_narrowed_never_widened() {
        let wide = scope(&[(None, Role::Operator), (Some(A), Role::Admin)]);
        let few = wide.at_least(Role::Supervisor);
        assert_eq!((few.everywhere(), few.at(A), few.at(B)), (None, Some(Role::Admin), None));
        assert_eq!(wide.at_least(Role::Viewer), wide);
        let key = wide.at_most(Role::Viewer, None);
        assert_eq!(
            (key.everywhere(), key.at(A), key.at(B)),
            (Some(Role::Viewer), Some(Role::Viewer), Some(Role::Viewer))
        );
        let key = wide.at_most(Role::Admin, Some(B));
        assert_eq!((key.everywhere(), key.at(A), key.at(B)), (None, None, Some(Role::Operator)));
        assert_eq!(wide.at_most(Role::Admin, Some(C)).greatest(), None);
    }
}
