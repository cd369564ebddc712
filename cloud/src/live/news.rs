//! What one replica tells the others, as text.

use uuid::Uuid;

use super::Change;

/// Changes in one text: it has 32 bytes for who tells it, and 33 for each.
const CHANGES_MAX: usize = 200;

/// What another replica told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    Changed(Change),
    /// Something changed, and nobody knows what.
    Lost,
}

/// What `origin` tells; of no changes, that some were lost.
#[must_use]
pub fn write(origin: Uuid, changes: &[Change]) -> Vec<String> {
    if changes.is_empty() {
        return vec![origin.simple().to_string()];
    }
    let text = |some: &[Change]| some.iter().map(|change| one(*change)).collect::<String>();
    changes.chunks(CHANGES_MAX).map(|some| format!("{}{}", origin.simple(), text(some))).collect()
}

fn one(change: Change) -> String {
    let (letter, id) = match change {
        Change::Machine(id) => ('m', id),
        Change::Alarm(id) => ('a', id),
        Change::Incident(id) => ('i', id),
        Change::Ticket(id) => ('t', id),
        Change::Anomaly(id) => ('n', id),
        Change::Gateway(id) => ('g', id),
    };
    format!("{letter}{}", id.simple())
}

/// Who tells what. What a newer replica tells and this one does not know is lost to it.
#[must_use]
pub fn read(text: &str) -> Option<(Uuid, Vec<News>)> {
    let (origin, mut rest) = text.split_at_checked(32)?;
    let origin = Uuid::try_parse(origin).ok()?;
    let mut news = Vec::new();
    while !rest.is_empty() {
        let (one, more) = rest.split_at_checked(33)?;
        rest = more;
        let (letter, id) = one.split_at_checked(1)?;
        let id = Uuid::try_parse(id).ok()?;
        news.push(match letter {
            "m" => News::Changed(Change::Machine(id)),
            "a" => News::Changed(Change::Alarm(id)),
            "i" => News::Changed(Change::Incident(id)),
            "t" => News::Changed(Change::Ticket(id)),
            "n" => News::Changed(Change::Anomaly(id)),
            "g" => News::Changed(Change::Gateway(id)),
            _ => News::Lost,
        });
    }
    if news.is_empty() {
        news.push(News::Lost);
    }
    Some((origin, news))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::news::TEXT_BYTES_MAX;

    #[test]
    fn what_is_told_is_read() {
        let [origin, id] = [Uuid::from_u128(1 << 120), Uuid::from_u128(7)];
        let changes = [
            Change::Machine(id),
            Change::Alarm(id),
            Change::Incident(id),
            Change::Ticket(id),
            Change::Anomaly(id),
            Change::Gateway(id),
        ];
        let [text] = &write(origin, &changes)[..] else { panic!("they are few") };
        assert_eq!(read(text), Some((origin, changes.map(News::Changed).to_vec())));
        assert_eq!(read(&write(origin, &[])[0]), Some((origin, vec![News::Lost])));
        let later = format!("{}x{}", origin.simple(), id.simple());
        assert_eq!(read(&later), Some((origin, vec![News::Lost])), "of a newer replica");
        for noise in ["", "x", "ä", &"ä".repeat(40), &text[..40]] {
            assert_eq!(read(noise), None, "{noise}");
        }
    }

    #[test]
    fn many_changes_are_several_texts_of_which_each_can_be_told() {
        let changes: Vec<_> = (0..1_001).map(|n| Change::Machine(Uuid::from_u128(n))).collect();
        let texts = write(Uuid::nil(), &changes);
        assert_eq!(texts.len(), 6);
        assert!(texts.iter().all(|text| text.len() <= TEXT_BYTES_MAX));
        let news = texts.iter().flat_map(|text| read(text).unwrap().1).collect::<Vec<_>>();
        assert_eq!(news, changes.into_iter().map(News::Changed).collect::<Vec<_>>());
    }
}
