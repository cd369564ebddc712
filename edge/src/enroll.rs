//! `gemba-edge enroll`: makes the gateway's key and exchanges it for the cloud's, once, with a token.

use std::{io::Write as _, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use gemba_shared::enrolment::{PATH, Request, Response, Token};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::{config::Config, identity};

/// The largest answer.
const ANSWER_BYTES_MAX: u64 = 64 * 1_024;
const TIMEOUT: Duration = Duration::from_secs(20);

/// Enrols this gateway; `force` replaces an identity that it has.
///
/// # Errors
/// If the token is none, the cloud cannot be reached or refuses, or its answer is not to be believed. Nothing has
/// been changed then.
pub fn enroll(config: &Config, token: &str, force: bool) -> anyhow::Result<()> {
    let token: Token = token.parse()?;
    if identity::exists(&config.data_dir) && !force {
        bail!(
            "this gateway is enrolled already ({}); --force replaces its identity, and the cloud then knows it under \
             the new one only",
            config.data_dir.join("identity").display()
        );
    }
    let key = identity::new_key()?;
    let answer = post(&token, &Request::new(&token.secret, &key))?;
    let enrolled = answer.check(&token, &key.verifying_key())?;
    let gateway = enrolled.gateway;
    let url = enrolled.mqtt.url.clone();
    identity::store(&config.data_dir, &key, enrolled)?;
    writeln!(std::io::stdout().lock(), "enrolled as gateway {gateway}; it delivers to {url}")?;
    Ok(())
}

fn post(token: &Token, request: &Request) -> anyhow::Result<Response> {
    let url = format!("{}{PATH}", token.api_url);
    let agent = agent(url.starts_with("https:"))?;
    let mut response = agent
        .post(&url)
        .send_json(request)
        .with_context(|| format!("the cloud at {} cannot be reached", token.api_url))?;
    let status = response.status();
    let body = response
        .body_mut()
        .with_config()
        .limit(ANSWER_BYTES_MAX)
        .read_to_string()
        .with_context(|| format!("the answer of {url} cannot be read"))?;
    if !status.is_success() {
        // A problem+json body says it in `detail` or `title`.
        let problem: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        let said = ["detail", "title"].iter().find_map(|key| problem[key].as_str()).unwrap_or("it gave no reason");
        bail!("the cloud refused the enrolment ({status}): {said}; a token works once and for a limited time");
    }
    serde_json::from_str(&body).with_context(|| format!("what answered at {url} is not Gemba's cloud"))
}

fn agent(tls: bool) -> anyhow::Result<ureq::Agent> {
    let mut config =
        ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).max_redirects(0);
    if tls {
        let roots = rustls_native_certs::load_native_certs().certs;
        if roots.is_empty() {
            bail!("the system has no certificate authorities (install the package ca-certificates)");
        }
        let roots: Vec<_> = roots.iter().map(|cert| Certificate::from_der(cert.as_ref()).to_owned()).collect();
        config = config.tls_config(
            TlsConfig::builder()
                .root_certs(RootCerts::new_with_certs(&roots))
                .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .build(),
        );
    }
    Ok(config.build().into())
}
