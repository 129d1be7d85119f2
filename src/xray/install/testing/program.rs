//! Programs of a hundred bytes that the kernel really runs: a header, some instructions, and what they print.

const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// A core of that version.
pub(crate) fn xray(version: &str) -> Vec<u8> {
    built(version, "9f8c8f5")
}

/// A core of that version, of another build.
pub(crate) fn built(version: &str, commit: &str) -> Vec<u8> {
    let banner = format!("Xray {version} (Xray, Penetrates Everything.) {commit} (go1.26.1)\n");
    printing(&banner, 0)
}

/// A program that prints `text` and ends with `status`, a small number.
pub(crate) fn printing(text: &str, status: u8) -> Vec<u8> {
    let mut code = machine::print_and_exit(u32::try_from(text.len()).unwrap(), status);
    code.extend_from_slice(text.as_bytes());
    program(&code)
}

/// A program that does nothing and does not end.
pub(crate) fn hanging() -> Vec<u8> {
    program(machine::WAIT)
}

/// The header of a program for a machine, and nothing behind it.
pub(crate) fn header(machine: u16, wide: bool, little: bool) -> Vec<u8> {
    let mut header = vec![0x7f, b'E', b'L', b'F', 1, 2, 1];
    if wide {
        header[4] = 2;
    }
    if little {
        header[5] = 1;
    }
    header.resize(16, 0);
    for number in [2, machine] {
        if little {
            header.extend(number.to_le_bytes());
        } else {
            header.extend(number.to_be_bytes());
        }
    }
    header
}

fn program(code: &[u8]) -> Vec<u8> {
    let size = HEADERS + code.len() as u64;
    let mut program = header(machine::NUMBER, true, true);
    // Version, entry, where the program headers are, no sections, no flags.
    program.extend(1_u32.to_le_bytes());
    program.extend((BASE + HEADERS).to_le_bytes());
    program.extend(64_u64.to_le_bytes());
    program.extend([0; 8 + 4]);
    for small in [64_u16, 56, 1, 64, 0, 0] {
        program.extend(small.to_le_bytes());
    }
    // One segment, all of the file: loaded, readable and executable.
    program.extend(1_u32.to_le_bytes());
    program.extend(5_u32.to_le_bytes());
    for large in [0, BASE, BASE, size, size, 0x1_0000] {
        program.extend(large.to_le_bytes());
    }
    assert_eq!(program.len() as u64, HEADERS);
    program.extend_from_slice(code);
    program
}

#[cfg(target_arch = "x86_64")]
mod machine {
    pub(super) const NUMBER: u16 = 62;

    /// `pause()` again and again.
    pub(super) const WAIT: &[u8] = &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];

    /// `write(1, text, length)` of the text behind this code, and `exit(status)`.
    pub(super) fn print_and_exit(length: u32, status: u8) -> Vec<u8> {
        let mut code = vec![0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0];
        // From behind this instruction to behind all of them.
        code.extend([0x48, 0x8d, 0x35, 19, 0, 0, 0]);
        code.push(0xba);
        code.extend(length.to_le_bytes());
        code.extend([
            0x0f, 0x05, 0xb8, 60, 0, 0, 0, 0xbf, status, 0, 0, 0, 0x0f, 0x05,
        ]);
        code
    }
}

#[cfg(target_arch = "aarch64")]
mod machine {
    pub(super) const NUMBER: u16 = 183;

    /// Round and round.
    pub(super) const WAIT: &[u8] = &0x1400_0000_u32.to_le_bytes();

    /// `write(1, text, length)` of the text behind this code, and `exit(status)`.
    pub(super) fn print_and_exit(length: u32, status: u8) -> Vec<u8> {
        let number = |register: u32, value: u32| 0xd280_0000 | value << 5 | register;
        let call = 0xd400_0001;
        // The address six instructions on from this one.
        let text = 0x1000_0001 | 6 << 5;
        let code = [
            number(8, 64),
            number(0, 1),
            text,
            number(2, length),
            call,
            number(8, 93),
            number(0, u32::from(status)),
            call,
        ];
        code.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}
