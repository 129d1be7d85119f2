//! Whether a report arrived, by what was seen. Pure.
//!
//! What is proof and what is not was measured with real clients that were killed, cancelled and cut off in
//! every way; `docs/usage.md` has the table. Above all: that the client's kernel has acknowledged a byte
//! does not say that the client has read it, and that it has not does not say that it hasn't.

/// Everything that was seen of one report and its connection.
#[derive(Clone, Copy, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one thing that was seen or not; the table below is about nothing else"
)]
pub(super) struct Evidence {
    /// The report is one stream of several; otherwise it has the connection for itself.
    pub(super) http2: bool,
    /// How many bytes the connection had taken when the report's last one was among them. Unknown for as
    /// long as not all of the report is in the kernel.
    pub(super) end: Option<u64>,
    /// How many bytes the kernel has taken.
    pub(super) written: u64,
    /// How many of them the peer's kernel has acknowledged.
    pub(super) acked: u64,
    /// How many of them have not left this machine.
    pub(super) unsent: u64,
    /// The connection is closed as far as the kernel is concerned: both have said so, or a reset came.
    pub(super) closed: bool,
    /// The peer has ended its side in order.
    pub(super) eof: bool,
    /// The peer has ended TLS, in order.
    pub(super) ended_tls: bool,
    /// We have begun to close the connection.
    pub(super) goodbye: bool,
    /// The connection is over: nobody reads from it or writes to it any more.
    pub(super) over: bool,
    /// It has been over for a while, and nothing was heard of the peer.
    pub(super) silent: bool,
    /// The report was thrown away before it was complete.
    pub(super) discarded: bool,
    /// An error was sent in its place.
    pub(super) replaced: bool,
    /// The client has cancelled the call.
    pub(super) reset_stream: bool,
    /// The client has answered the question that came right behind the report; over HTTP/1.1, where there is
    /// none, it has asked for something else since its kernel acknowledged the report.
    pub(super) pong: bool,
    /// It has answered an earlier question.
    pub(super) answered: bool,
    /// It has been a while since the first sign that the report arrived.
    pub(super) rested: bool,
    /// It has been very long since anything went forward.
    pub(super) late: bool,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The client has it.
    Arrived,
    /// The client does not have it.
    Lost,
    /// Nobody will ever know.
    Unsure,
    /// It is not over yet.
    Wait,
    /// It never will be unless the connection ends: what is on its way there must not arrive after all.
    GiveUp,
}

/// The first rule that holds decides.
pub(super) fn judge(seen: &Evidence) -> Verdict {
    use Verdict::{Arrived, GiveUp, Lost, Unsure, Wait};

    // A client that has seen the end of a stream does not cancel it. That one may come behind the answer:
    // the library answers, the call inside it has run out of time.
    if seen.reset_stream || seen.replaced {
        return Lost;
    }
    if seen.pong {
        let is_final = seen.rested || seen.over || !seen.http2;
        return if is_final { Arrived } else { Wait };
    }
    let wait = if seen.late && !seen.over {
        GiveUp
    } else {
        Wait
    };
    // The last TLS record is not whole, so nobody can read it.
    let Some(end) = seen.end else {
        return if seen.discarded || seen.over {
            Lost
        } else {
            wait
        };
    };
    let acked = seen.acked >= end;
    // Our own FIN counts as one byte.
    let kept_here = !acked && seen.written.saturating_sub(seen.unsent) + 1 < end;
    // Of a connection that is over the kernel sends the rest only when HTTP has closed it in order.
    if seen.over && kept_here {
        let is_sent = seen.goodbye && !seen.closed && !seen.silent;
        return if is_sent { Wait } else { Lost };
    }
    if seen.http2 {
        return match seen.closed || seen.eof || seen.ended_tls {
            _ if !seen.over => wait,
            // It was silent, and we have ended the connection: what it leaves unread may be our goodbye.
            true if seen.goodbye => Unsure,
            // Its library answers before anything else; one that has ended without has not read it.
            true if seen.answered => Lost,
            true if acked && seen.eof => Arrived,
            true => Lost,
            false if seen.silent => Unsure,
            false => Wait,
        };
    }
    match (seen.closed, seen.eof) {
        // A byte that nobody has read turns the end of a connection into a reset; and a reset makes the
        // kernel forget what it acknowledges. Behind our goodbye the byte may be the goodbye's.
        (true, false) if !seen.goodbye => Lost,
        (true, _) if acked => Arrived,
        _ if acked && (seen.rested || seen.eof) => Arrived,
        _ if acked => Wait,
        // The peer's FIN came with its last acknowledgement.
        (true, true) => Lost,
        (true, false) => Unsure,
        _ if seen.silent => Unsure,
        _ => wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of the report is in the kernel, and nothing has come back.
    fn sent(http2: bool) -> Evidence {
        Evidence {
            http2,
            end: Some(1000),
            written: 1000,
            acked: 100,
            ..Evidence::default()
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "it is one table")]
    fn over_http2_the_clients_own_word_decides() {
        let sent = sent(true);
        let pong = Evidence { pong: true, ..sent };
        let over = Evidence { over: true, ..sent };
        let answered = Evidence {
            answered: true,
            ..over
        };
        let acked = Evidence {
            acked: 1000,
            ..over
        };
        let table = [
            (sent, Verdict::Wait, "it is on its way"),
            (pong, Verdict::Wait, "the call may have run out of time"),
            (
                Evidence {
                    rested: true,
                    ..pong
                },
                Verdict::Arrived,
                "answered",
            ),
            (
                Evidence { over: true, ..pong },
                Verdict::Arrived,
                "answered, then gone",
            ),
            (
                Evidence {
                    reset_stream: true,
                    ..pong
                },
                Verdict::Lost,
                "answered and cancelled",
            ),
            (
                Evidence {
                    reset_stream: true,
                    ..sent
                },
                Verdict::Lost,
                "cancelled",
            ),
            (
                Evidence { end: None, ..sent },
                Verdict::Wait,
                "not all of it has left",
            ),
            (Evidence { end: None, ..over }, Verdict::Lost, "cut off"),
            (
                Evidence {
                    end: None,
                    discarded: true,
                    ..sent
                },
                Verdict::Lost,
                "thrown away",
            ),
            (
                Evidence {
                    unsent: 500,
                    ..over
                },
                Verdict::Lost,
                "half of it never left",
            ),
            (
                Evidence {
                    eof: true,
                    ..answered
                },
                Verdict::Lost,
                "left without an answer",
            ),
            (
                Evidence {
                    closed: true,
                    ..answered
                },
                Verdict::Lost,
                "killed",
            ),
            (
                Evidence { eof: true, ..acked },
                Verdict::Arrived,
                "never answers, has it",
            ),
            (
                Evidence {
                    closed: true,
                    ..acked
                },
                Verdict::Lost,
                "has left it unread",
            ),
            (
                Evidence {
                    closed: true,
                    goodbye: true,
                    ..answered
                },
                Verdict::Unsure,
                "silent until we left",
            ),
            (over, Verdict::Wait, "its last word may be on its way"),
            (
                Evidence {
                    silent: true,
                    ..over
                },
                Verdict::Unsure,
                "silence",
            ),
            (
                Evidence {
                    silent: true,
                    ..answered
                },
                Verdict::Unsure,
                "silence",
            ),
            (
                Evidence {
                    ended_tls: true,
                    ..answered
                },
                Verdict::Lost,
                "left without an answer",
            ),
            (
                Evidence {
                    replaced: true,
                    ..pong
                },
                Verdict::Lost,
                "it was an error",
            ),
            (
                Evidence {
                    end: None,
                    late: true,
                    ..sent
                },
                Verdict::GiveUp,
                "stuck",
            ),
            (
                Evidence {
                    answered: true,
                    late: true,
                    ..sent
                },
                Verdict::GiveUp,
                "it answers no more",
            ),
            (
                Evidence { late: true, ..sent },
                Verdict::GiveUp,
                "it never answers",
            ),
            (
                Evidence {
                    late: true,
                    acked: 1000,
                    rested: true,
                    ..sent
                },
                Verdict::GiveUp,
                "it never answers, its kernel has it",
            ),
        ];
        for (evidence, verdict, what) in table {
            assert_eq!(judge(&evidence), verdict, "{what}: {evidence:?}");
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "it is one table")]
    fn over_http1_there_is_only_the_kernels_word() {
        let sent = sent(false);
        let acked = Evidence {
            acked: 1000,
            ..sent
        };
        let reset = Evidence {
            closed: true,
            ..acked
        };
        let table = [
            (sent, Verdict::Wait, "it is on its way"),
            (acked, Verdict::Wait, "a reset may come"),
            (
                Evidence {
                    rested: true,
                    ..acked
                },
                Verdict::Arrived,
                "none came",
            ),
            (
                Evidence { eof: true, ..acked },
                Verdict::Arrived,
                "left in order",
            ),
            (reset, Verdict::Lost, "left it unread"),
            (
                Evidence {
                    goodbye: true,
                    ..reset
                },
                Verdict::Arrived,
                "left our goodbye unread",
            ),
            (
                Evidence {
                    end: None,
                    over: true,
                    ..sent
                },
                Verdict::Lost,
                "cut off",
            ),
            (
                Evidence {
                    unsent: 500,
                    closed: true,
                    ..sent
                },
                Verdict::Lost,
                "half of it never left",
            ),
            (
                Evidence {
                    unsent: 500,
                    late: true,
                    ..sent
                },
                Verdict::GiveUp,
                "it reads no more",
            ),
            (
                Evidence {
                    closed: true,
                    eof: true,
                    ..sent
                },
                Verdict::Lost,
                "its last word was that it does not have it",
            ),
            (
                Evidence {
                    closed: true,
                    goodbye: true,
                    ..sent
                },
                Verdict::Unsure,
                "reset behind our goodbye",
            ),
            (Evidence { late: true, ..sent }, Verdict::GiveUp, "silence"),
            (
                Evidence {
                    over: true,
                    silent: true,
                    ..sent
                },
                Verdict::Unsure,
                "silence",
            ),
            (
                Evidence { pong: true, ..sent },
                Verdict::Arrived,
                "it asks for more",
            ),
            (
                Evidence { over: true, ..sent },
                Verdict::Wait,
                "the kernel goes on",
            ),
        ];
        for (evidence, verdict, what) in table {
            assert_eq!(judge(&evidence), verdict, "{what}: {evidence:?}");
        }
    }
}
