//! How commands write: for people, or as JSON for programs.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};
use indicatif::ProgressBar;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use time::OffsetDateTime;

use super::failure::Failure;
use crate::proto::SERVICE_DESCRIPTORS;

/// What fits where nobody knows how wide the terminal is.
const WIDTH: u16 = 80;

pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const POOR: Style = AnsiColor::Yellow.on_default();
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(super) const FAINT: Style = Style::new().dimmed();

#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Form {
    /// Print JSON instead of text for people.
    #[arg(long)]
    pub(super) json: bool,
}

/// A text in a style; where it does not go to a terminal the style is left out when it is printed.
pub(super) fn styled(style: Style, text: impl std::fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}

/// Prints a line; colours only where a terminal shows them.
///
/// # Errors
/// When nobody reads any more.
pub(super) fn say(line: impl std::fmt::Display) -> Result<(), Failure> {
    writeln!(anstream::stdout(), "{line}").map_err(Failure::Unheard)
}

/// Shows that something goes on, where a terminal shows it.
pub(super) fn waiting(for_what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(for_what);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Prints lines of a name and what there is to say of it.
pub(super) fn say_facts(facts: &[(&str, String)]) -> Result<(), Failure> {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in facts {
        say(format!(
            "  {}  {value}",
            styled(FAINT, format!("{name:width$}"))
        ))?;
    }
    Ok(())
}

/// A table with these columns; those behind a `>` are numbers.
pub(super) fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(columns.iter().map(|name| name.trim_start_matches('>')));
    if !std::io::stdout().is_terminal() {
        table.set_width(WIDTH);
    }
    for (place, name) in columns.iter().enumerate() {
        if let Some(column) = table.column_mut(place) {
            column.set_padding((0, 2));
            if name.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table
}

/// How wide lines may be.
pub(super) fn width() -> usize {
    table(&[]).width().unwrap_or(WIDTH).into()
}

/// The words of this column are not broken: they are to be copied.
pub(super) fn keep_whole(table: &mut Table, column: usize) {
    if let Some(column) = table.column_mut(column) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
}

/// Prints a message of the node's own API as one line of JSON.
pub(super) fn say_json<M: Message>(name: &str, message: &M) -> Result<(), Failure> {
    say(json(name, message)?)
}

/// A message of the node's own API as JSON: every field that it has, by its own name, numbers as numbers.
pub(super) fn json<M: Message>(name: &str, message: &M) -> Result<serde_json::Value, Failure> {
    let fail = |reason: String| Failure::Other(format!("{name} can't be shown as JSON: {reason}"));
    let pool =
        DescriptorPool::decode(SERVICE_DESCRIPTORS).map_err(|error| fail(error.to_string()))?;
    let descriptor = pool
        .get_message_by_name(&format!("raynode.v1.{name}"))
        .ok_or_else(|| fail("there is no such message".to_owned()))?;
    let decoded = DynamicMessage::decode(descriptor, &*message.encode_to_vec())
        .map_err(|error| fail(error.to_string()))?;
    let options = prost_reflect::SerializeOptions::new()
        .skip_default_fields(false)
        .use_proto_field_name(true)
        .stringify_64_bit_integers(false);
    decoded
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| fail(error.to_string()))
}

/// Bytes, to three digits.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&"KiB");
    for next in units {
        if value < 1000.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    let digits = if value < 10.0 {
        2
    } else {
        usize::from(value < 100.0)
    };
    format!("{value:.digits$} {unit}")
}

/// A span, by its two largest units.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let mut rest = seconds;
    let parts = units.map(|(length, name)| {
        let count = rest / length;
        rest %= length;
        (count, name)
    });
    let mut shown = parts
        .into_iter()
        .skip_while(|(count, name)| *count == 0 && *name != "s")
        .take(2)
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect::<Vec<_>>()
        .join(" ");
    if shown.is_empty() {
        "0 s".clone_into(&mut shown);
    }
    shown
}

/// A span of so many seconds.
pub(super) fn seconds(count: u64) -> String {
    span(Duration::from_secs(count))
}

/// The day of a moment, UTC.
pub(super) fn day(unix_seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(unix_seconds)
        .map_or_else(|_| "unknown".to_owned(), |moment| moment.date().to_string())
}

/// So many of them, in words.
pub(super) fn counted(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {what}{plural}", number(count))
}

/// A number with commas between the thousands.
pub(super) fn number(count: u64) -> String {
    let digits = count.to_string();
    let mut shown = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        let shown = [
            0,
            1023,
            1024,
            1536,
            102_400,
            1 << 20,
            1_073_741_824_000,
            u64::MAX,
        ];
        assert_eq!(
            shown.map(bytes),
            [
                "0 B", "1023 B", "1.00 KiB", "1.50 KiB", "100 KiB", "1.00 MiB", "0.98 TiB",
                "16.0 EiB"
            ]
        );
    }

    #[test]
    fn spans_have_two_units_and_numbers_commas() {
        let shown = [0, 59, 60, 3_661, 86_400, 90_061];
        assert_eq!(
            shown.map(seconds),
            ["0 s", "59 s", "1 min", "1 h 1 min", "1 d", "1 d 1 h"]
        );
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(number),
            ["0", "999", "1,000", "1,234,567"]
        );
    }
}
