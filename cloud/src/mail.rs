//! E-mail, through the mail server of the configuration. One connection a message; at most [`ATTEMPT_MAX`] for it.

use std::time::Duration;

use anyhow::Context as _;
use gemba_mqtt::client::read_password;
use jiff::Timestamp;
use lettre::{
    Address, AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor,
    message::{
        Mailbox, MultiPart,
        header::{HeaderName, HeaderValue},
    },
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, CertificateStore, Tls, TlsParameters},
        extension::ClientId,
    },
};

use crate::{
    config::{
        hostname,
        notifications::{Smtp, SmtpTls},
    },
    notifications::retry::{Outcome, told},
};

/// How long a message may take to be handed over.
pub const ATTEMPT_MAX: Duration = Duration::from_secs(30);
/// How long the server may take for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// Hands messages to the mail server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Mailer {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
}

/// A message to one person.
#[derive(Debug, Clone)]
pub struct Letter<'a> {
    /// Its Message-ID before the `@`: the same again for the same message.
    pub id: String,
    pub to: &'a str,
    pub subject: &'a str,
    pub plain: String,
    pub html: String,
    /// Where its receiver says that they want no more of this kind.
    pub unsubscribe: Option<String>,
}

impl Mailer {
    /// Reads the files that are named; connects to nothing yet.
    ///
    /// # Errors
    /// If a file cannot be read or is of no use.
    pub fn new(smtp: &Smtp) -> anyhow::Result<Self> {
        let mut tls = TlsParameters::builder(smtp.host.clone());
        if let Some(file) = &smtp.ca_file {
            let pem = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            let authority =
                Certificate::from_pem(&pem).ok().context("notifications.smtp.ca_file holds no certificate in PEM")?;
            tls = tls.certificate_store(CertificateStore::None).add_root_certificate(authority);
        }
        let tls = tls.build_rustls().context("notifications.smtp")?;
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&smtp.host)
            .port(smtp.port())
            .timeout(Some(ANSWER_MAX))
            .hello_name(hostname().map_or_else(ClientId::default, ClientId::Domain))
            .tls(match smtp.tls {
                SmtpTls::Starttls => Tls::Required(tls),
                SmtpTls::Tls => Tls::Wrapper(tls),
                SmtpTls::None => Tls::None,
            });
        if let (Some(name), Some(file)) = (&smtp.username, &smtp.password_file) {
            let password = read_password(file).context("notifications.smtp.password_file")?;
            transport = transport.credentials(Credentials::new(name.clone(), password));
        }
        Ok(Self { transport: transport.build(), from: smtp.from.clone() })
    }

    /// Hands a message over.
    pub async fn send(&self, letter: &Letter<'_>, now: Timestamp) -> Outcome {
        let message = match self.message(letter, now) {
            Ok(message) => message,
            Err(error) => return Outcome::Refused { status: None, error: told(&error.to_string()) },
        };
        let Ok(sent) = tokio::time::timeout(ATTEMPT_MAX, self.transport.send(message)).await else {
            return failed(None, &format!("the mail server took longer than {} s", ATTEMPT_MAX.as_secs()));
        };
        match sent {
            Ok(response) => {
                let reply: Vec<&str> = response.message().collect();
                Outcome::Sent { status: response.code().into(), reply: told(&reply.join(" ")) }
            }
            Err(error) => {
                let status = error.status().map(u16::from);
                let text = chain(&error);
                // What is wrong with the password is mended by an admin: until then it is tried again.
                let for_good = error.is_permanent() && !matches!(status, Some(530 | 534 | 535 | 538));
                if for_good { Outcome::Refused { status, error: text } } else { failed(status, &text) }
            }
        }
    }

    fn message(&self, letter: &Letter<'_>, now: Timestamp) -> anyhow::Result<Message> {
        let to: Address = letter.to.parse().context("the user's e-mail address is none")?;
        let mut message = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(letter.subject)
            .date(now.into())
            .message_id(Some(format!("<{}@{}>", letter.id, self.from.email.domain())))
            // Nobody's out-of-office reply is of use (RFC 3834).
            .raw_header(header("Auto-Submitted", "auto-generated"))
            .raw_header(header("X-Auto-Response-Suppress", "All"));
        if let Some(url) = &letter.unsubscribe {
            message = message.raw_header(header("List-Unsubscribe", &format!("<{url}>")));
        }
        Ok(message.multipart(MultiPart::alternative_plain_html(letter.plain.clone(), letter.html.clone()))?)
    }
}

fn header(name: &'static str, value: &str) -> HeaderValue {
    HeaderValue::new(HeaderName::new_from_ascii_str(name), value.to_owned())
}

fn failed(status: Option<u16>, error: &str) -> Outcome {
    Outcome::Failed { status, error: told(error), retry_after: None }
}

/// What went wrong, with its causes: lettre's own words name only the kind.
fn chain(error: &lettre::transport::smtp::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = next.source();
    }
    told(&text)
}
