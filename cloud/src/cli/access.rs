//! Commands of whoever has the server: users, organisations, sites, and the keys of access tokens.

use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use uuid::Uuid;

use super::say;
use crate::{
    clock,
    store::{
        Store,
        audit::By,
        sites::{self, Named},
        token_keys, users,
        users_admin::{self, After, Changed, Member, Order, Profile},
    },
    users::{
        Role,
        scope::Grant,
        secrets::{self, LINK},
    },
};

#[derive(Debug, Subcommand)]
pub(super) enum User {
    /// Add a user; prints a one-time password.
    Add {
        name: String,
        #[arg(long)]
        role: Role,
        #[arg(long, default_value = "default")]
        organisation: String,
        /// Where the role holds; without, in the whole organisation.
        #[arg(long)]
        site: Option<String>,
    },
    /// List users with what they may do.
    List,
    /// Give a user a role at a site (or in the whole organisation) in the place of the one they had there.
    Grant {
        name: String,
        #[arg(long)]
        role: Role,
        #[arg(long)]
        site: Option<String>,
    },
    /// Take a user's role at a site (or in the whole organisation) away.
    Revoke {
        name: String,
        #[arg(long)]
        site: Option<String>,
    },
    /// Print a link with which a user chooses a new password, once, within 72 hours.
    PasswordLink { name: String },
    /// End a user's sessions and keys, and let them in no more.
    Disable { name: String },
    /// Let a user in again.
    Enable { name: String },
}

#[derive(Debug, Subcommand)]
pub(super) enum Organisation {
    Add {
        name: String,
    },
    /// List organisations and their sites.
    List,
}

#[derive(Debug, Subcommand)]
pub(super) enum Site {
    Add {
        name: String,
        #[arg(long, default_value = "default")]
        organisation: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum TokenKey {
    /// Make a new key; it signs in five minutes, and the one before it is taken until its tokens are over. Happens by itself
    /// each month.
    Rotate {
        /// Take nothing any more that an older key signed: pages and tools refresh their tokens.
        #[arg(long)]
        at_once: bool,
    },
}

pub(super) async fn user(command: User, url: &str, store: &Store) -> anyhow::Result<()> {
    match command {
        User::Add { name, role, organisation, site } => {
            let organisation = find_organisation(store, &organisation).await?;
            let grant = Grant { site: find_site(store, organisation, site.as_deref()).await?, role };
            let password = users::add_to(store, organisation, &name, grant).await?;
            say(&format!("Added {name} as {role}. The one-time password:\n{password}"))
        }
        User::List => list(store).await,
        User::Grant { name, role, site } => regrant(store, &name, site.as_deref(), Some(role)).await,
        User::Revoke { name, site } => regrant(store, &name, site.as_deref(), None).await,
        User::PasswordLink { name } => {
            let id = find_user(store, &name).await?.0;
            let secret = secrets::new(LINK)?;
            let hash = secrets::hash(LINK, &secret).context("no secret")?;
            let mut client = store.client().await?;
            let transaction = client.transaction().await?;
            let member = users_admin::one(&transaction, id, true).await?.context("the user is gone")?;
            if member.disabled {
                bail!("{name} is disabled: `gemba-cloud user enable {name}` first");
            }
            let by = By::command_line(find_user(store, &name).await?.1);
            users_admin::link(&transaction, id, &hash, &by, clock::now()).await?;
            transaction.commit().await?;
            say(&format!(
                "The link with which {name} chooses a password, good once within 72 hours:\n{}/#/password/{secret}",
                url.trim_end_matches('/')
            ))
        }
        User::Disable { name } => enable(store, &name, true).await,
        User::Enable { name } => enable(store, &name, false).await,
    }
}

pub(super) async fn organisation(command: Organisation, store: &Store) -> anyhow::Result<()> {
    match command {
        Organisation::Add { name } => {
            let name = checked(&name)?;
            match sites::insert_organisation(store, name, clock::now()).await? {
                Named::Done(id) => say(&format!(
                    "Added organisation {name} ({id}). Next: `gemba-cloud site add <name> --organisation {name}` and \
                     `gemba-cloud user add <name> --role admin --organisation {name}`"
                )),
                Named::Taken | Named::TooMany => bail!("there is an organisation {name:?} already"),
            }
        }
        Organisation::List => {
            let mut text = format!("{:<36}  {:<24} sites", "id", "name");
            for (organisation, sites) in sites::all(store).await? {
                write!(text, "\n{:<36}  {:<24} {}", organisation.id, organisation.name, sites.join(", "))?;
            }
            say(&text)
        }
    }
}

pub(super) async fn site(command: Site, store: &Store) -> anyhow::Result<()> {
    let Site::Add { name, organisation } = command;
    let name = checked(&name)?;
    let id = find_organisation(store, &organisation).await?;
    let mut client = store.client().await?;
    let transaction = client.transaction().await?;
    match sites::insert(&transaction, id, name, &By::command_line(id), clock::now()).await? {
        Named::Done(site) => {
            transaction.commit().await?;
            say(&format!("Added site {name} ({site}) to {organisation}."))
        }
        Named::Taken => bail!("{organisation} has a site {name:?} already"),
        Named::TooMany => bail!("an organisation has at most {} sites", sites::SITES_MAX),
    }
}

pub(super) async fn token_key(command: TokenKey, store: &Store) -> anyhow::Result<()> {
    let TokenKey::Rotate { at_once } = command;
    token_keys::rotate(store, clock::now(), at_once).await?;
    say(if at_once { "There is a new key; all access tokens until now are over." } else { "There is a new key." })
}

fn checked(name: &str) -> anyhow::Result<&str> {
    if name.is_empty() || name.trim() != name || name.chars().count() > 100 || name.chars().any(char::is_control) {
        bail!("a name has 1 to 100 characters, no control characters, and no space at its ends");
    }
    Ok(name)
}

async fn find_organisation(store: &Store, name: &str) -> anyhow::Result<Uuid> {
    let found = sites::find_organisation(store, name).await?;
    found.with_context(|| format!("there is no organisation {name:?} (`gemba-cloud organisation list` names them)"))
}

async fn find_site(store: &Store, organisation: Uuid, name: Option<&str>) -> anyhow::Result<Option<Uuid>> {
    let Some(name) = name else { return Ok(None) };
    let found = sites::find(store, organisation, name).await?;
    found.map(Some).with_context(|| format!("there is no site {name:?} (`gemba-cloud organisation list` names them)"))
}

/// Id and organisation.
async fn find_user(store: &Store, name: &str) -> anyhow::Result<(Uuid, Uuid)> {
    let found = users::by_name(store, name).await?;
    let (user, ..) =
        found.with_context(|| format!("there is no user {name:?} (`gemba-cloud user list` names them)"))?;
    Ok((user.id, user.organisation))
}

async fn list(store: &Store) -> anyhow::Result<()> {
    let mut text = format!("{:<36}  {:<24} {:<9} grants", "id", "name", "state");
    let mut after = None;
    loop {
        let mut client = store.client().await?;
        let transaction = client.transaction().await?;
        let members = users_admin::list(&transaction, None, Order::Name, after.as_ref(), 200).await?;
        let Some(last) = members.last() else { break };
        after = Some(After::of(Order::Name, last));
        for member in &members {
            let state = if member.disabled { "disabled" } else { "enabled" };
            let grants: Vec<String> = member.grants.iter().map(shown).collect();
            write!(text, "\n{:<36}  {:<24} {state:<9} {}", member.id, member.name, grants.join(", "))?;
        }
    }
    say(&text)
}

fn shown(grant: &Grant) -> String {
    grant.site.map_or_else(|| grant.role.to_string(), |site| format!("{} at {site}", grant.role))
}

async fn regrant(store: &Store, name: &str, site: Option<&str>, role: Option<Role>) -> anyhow::Result<()> {
    let (id, organisation) = find_user(store, name).await?;
    let site = find_site(store, organisation, site).await?;
    change(store, id, organisation, async |transaction, before, by| {
        let mut grants: Vec<Grant> = before.grants.iter().copied().filter(|grant| grant.site != site).collect();
        grants.extend(role.map(|role| Grant { site, role }));
        Ok(users_admin::grant(transaction, before, &grants, by, clock::now()).await?)
    })
    .await?;
    say(&format!("Changed what {name} may do."))
}

async fn enable(store: &Store, name: &str, disabled: bool) -> anyhow::Result<()> {
    let (id, organisation) = find_user(store, name).await?;
    change(store, id, organisation, async |transaction, before, by| {
        let after = Profile { display_name: before.display_name.clone(), email: before.email.clone(), disabled };
        Ok(users_admin::change(transaction, before, &after, by, clock::now()).await?)
    })
    .await?;
    say(&format!("{name} is {}.", if disabled { "disabled" } else { "enabled" }))
}

async fn change(
    store: &Store,
    id: Uuid,
    organisation: Uuid,
    change: impl AsyncFnOnce(&deadpool_postgres::Transaction<'_>, &Member, &By) -> anyhow::Result<Changed>,
) -> anyhow::Result<()> {
    let mut client = store.client().await?;
    let transaction = client.transaction().await?;
    let before = users_admin::one(&transaction, id, true).await?.context("the user is gone")?;
    match change(&transaction, &before, &By::command_line(organisation)).await? {
        Changed::LastAdmin => {
            bail!("nobody would be left who may manage the organisation: make somebody else an admin first")
        }
        Changed::NameTaken | Changed::EmailTaken => bail!("the name or e-mail address is taken"),
        Changed::Done(_) => Ok(transaction.commit().await?),
    }
}
