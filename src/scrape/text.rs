//! The two text formats: `OpenMetrics` as the encoder writes it, and what came before it for whoever does not
//! ask for that.

use http::header::{ACCEPT, HeaderMap, HeaderValue};

/// How a page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `OpenMetrics` 1.0.0
    OpenMetrics,
    /// Prometheus 0.0.4
    Plain,
}

impl Format {
    /// What a client takes. Prometheus asks for the first one by its name; people with curl read the other.
    pub(super) fn wanted(headers: &HeaderMap) -> Self {
        let mut accepted = headers.get_all(ACCEPT).iter();
        let names_it = |value: &HeaderValue| {
            let value = value.to_str().unwrap_or_default();
            value.contains("application/openmetrics-text")
        };
        if accepted.any(names_it) {
            Self::OpenMetrics
        } else {
            Self::Plain
        }
    }

    pub(super) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
        })
    }

    /// A page of `OpenMetrics` in this format.
    pub(super) fn of(self, page: &str) -> String {
        match self {
            Self::OpenMetrics => page.to_owned(),
            Self::Plain => plain(page),
        }
    }
}

/// There a counter is called by its whole name also where it is described, and units and an end are unknown.
fn plain(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            let kind = lines
                .next_if(|line| line.starts_with("# TYPE "))
                .unwrap_or_default();
            let (name, help) = described.split_once(' ').unwrap_or((described, ""));
            let kind = kind.rsplit(' ').next().unwrap_or("untyped");
            let total = if kind == "counter" { "_total" } else { "" };
            let lines = format!("# HELP {name}{total} {help}\n# TYPE {name}{total} {kind}\n");
            text.push_str(&lines);
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_their_whole_name_in_the_older_format() {
        let page = "# HELP a_seconds Of a\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\n\
            a_seconds_total{b=\"# c\"} 1.5\n# HELP d Of d: e\n# TYPE d gauge\nd 1\n# EOF\n";
        let wanted = "# HELP a_seconds_total Of a\n# TYPE a_seconds_total counter\n\
            a_seconds_total{b=\"# c\"} 1.5\n# HELP d Of d: e\n# TYPE d gauge\nd 1\n";
        assert_eq!(Format::Plain.of(page), wanted);
        assert_eq!(Format::OpenMetrics.of(page), page);
    }

    #[test]
    fn the_newer_one_is_for_those_who_ask_for_it() {
        let wanted = |accept: &'static str| {
            let accept = (ACCEPT, HeaderValue::from_static(accept));
            Format::wanted(&[accept].into_iter().collect())
        };
        assert_eq!(Format::wanted(&HeaderMap::new()), Format::Plain);
        assert_eq!(wanted("*/*"), Format::Plain);
        assert_eq!(wanted("text/plain;version=0.0.4"), Format::Plain);
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(wanted(prometheus), Format::OpenMetrics);
    }
}
