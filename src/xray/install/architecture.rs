//! Which of Xray's releases runs on this machine, and whether a file is one.

use super::Error;

/// How many bytes of a program say what it is for.
pub(super) const HEADER: u64 = 20;

/// A kind of machine that Xray is released for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    archive: &'static str,
    program: Program,
}

/// What the first bytes of an ELF file say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Program {
    machine: u16,
    wide: bool,
    little: bool,
}

const fn known(archive: &'static str, machine: u16, wide: bool, little: bool) -> Architecture {
    Architecture {
        archive,
        program: Program {
            machine,
            wide,
            little,
        },
    }
}

/// The archives of Xray's releases for Linux, with the numbers of elf(5).
const KNOWN: [Architecture; 15] = [
    known("Xray-linux-64.zip", 62, true, true),
    known("Xray-linux-32.zip", 3, false, true),
    known("Xray-linux-arm64-v8a.zip", 183, true, true),
    known("Xray-linux-arm32-v7a.zip", 40, false, true),
    known("Xray-linux-arm32-v6.zip", 40, false, true),
    known("Xray-linux-arm32-v5.zip", 40, false, true),
    known("Xray-linux-riscv64.zip", 243, true, true),
    known("Xray-linux-loong64.zip", 258, true, true),
    known("Xray-linux-ppc64.zip", 21, true, false),
    known("Xray-linux-ppc64le.zip", 21, true, true),
    known("Xray-linux-s390x.zip", 22, true, false),
    known("Xray-linux-mips32.zip", 8, false, false),
    known("Xray-linux-mips32le.zip", 8, false, true),
    known("Xray-linux-mips64.zip", 8, true, false),
    known("Xray-linux-mips64le.zip", 8, true, true),
];

impl Architecture {
    /// That of this machine.
    ///
    /// # Errors
    /// When Xray is not released for it.
    pub fn here() -> Result<Self, Error> {
        let arch = std::env::consts::ARCH;
        let little = cfg!(target_endian = "little");
        Self::of(arch, little, &sysinfo::System::cpu_arch()).ok_or(Error::Architecture(arch))
    }

    /// That of a program for `arch` on a machine that calls itself `machine`: the generation of an ARM
    /// is known to the kernel alone.
    fn of(arch: &str, little: bool, machine: &str) -> Option<Self> {
        let name = match (arch, little) {
            ("x86_64", _) => "64",
            ("x86", _) => "32",
            ("aarch64", true) => "arm64-v8a",
            ("arm", true) if machine.starts_with("armv5") => "arm32-v5",
            ("arm", true) if machine.starts_with("armv6") => "arm32-v6",
            ("arm", true) => "arm32-v7a",
            ("riscv64", _) => "riscv64",
            ("loongarch64", _) => "loong64",
            ("powerpc64", false) => "ppc64",
            ("powerpc64", true) => "ppc64le",
            ("s390x", _) => "s390x",
            ("mips", false) => "mips32",
            ("mips", true) => "mips32le",
            ("mips64", false) => "mips64",
            ("mips64", true) => "mips64le",
            _ => return None,
        };
        let archive = format!("Xray-linux-{name}.zip");
        KNOWN.into_iter().find(|known| known.archive == archive)
    }

    /// The name of the archive that a release has for it.
    #[must_use]
    pub fn archive(self) -> &'static str {
        self.archive
    }

    /// Looks at the first bytes of a file: nothing is run that could not run.
    ///
    /// # Errors
    /// When it is not a program, or one for another machine.
    pub(super) fn check(self, header: &[u8]) -> Result<(), Error> {
        let program = Program::read(header).ok_or(Error::NotAProgram)?;
        if program == self.program {
            return Ok(());
        }
        let others = KNOWN.iter().find(|known| known.program == program);
        Err(Error::OtherMachine {
            found: others.map_or("a machine that is not known here", |known| known.archive),
            wanted: self.archive,
        })
    }
}

impl Program {
    fn read(header: &[u8]) -> Option<Self> {
        const EXECUTABLE: u16 = 2;
        const POSITION_INDEPENDENT: u16 = 3;

        let header: &[u8; 20] = header.first_chunk()?;
        let [
            0x7f,
            b'E',
            b'L',
            b'F',
            class,
            order,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            k0,
            k1,
            m0,
            m1,
        ] = *header
        else {
            return None;
        };
        let wide = match class {
            1 => false,
            2 => true,
            _ => return None,
        };
        let little = match order {
            1 => true,
            2 => false,
            _ => return None,
        };
        let number = if little {
            u16::from_le_bytes
        } else {
            u16::from_be_bytes
        };
        let program = Self {
            machine: number([m0, m1]),
            wide,
            little,
        };
        [EXECUTABLE, POSITION_INDEPENDENT]
            .contains(&number([k0, k1]))
            .then_some(program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xray::install::testing::program;

    #[test]
    fn each_machine_has_its_archive() {
        for (arch, little, machine, archive) in [
            ("x86_64", true, "x86_64", "Xray-linux-64.zip"),
            ("x86", true, "x86_64", "Xray-linux-32.zip"),
            ("aarch64", true, "aarch64", "Xray-linux-arm64-v8a.zip"),
            ("arm", true, "armv7l", "Xray-linux-arm32-v7a.zip"),
            ("arm", true, "aarch64", "Xray-linux-arm32-v7a.zip"),
            ("arm", true, "armv6l", "Xray-linux-arm32-v6.zip"),
            ("arm", true, "armv5tejl", "Xray-linux-arm32-v5.zip"),
            ("powerpc64", true, "ppc64le", "Xray-linux-ppc64le.zip"),
            ("powerpc64", false, "ppc64", "Xray-linux-ppc64.zip"),
            ("mips", true, "mips", "Xray-linux-mips32le.zip"),
            ("loongarch64", true, "loongarch64", "Xray-linux-loong64.zip"),
            ("riscv64", true, "riscv64", "Xray-linux-riscv64.zip"),
            ("s390x", false, "s390x", "Xray-linux-s390x.zip"),
        ] {
            let found = Architecture::of(arch, little, machine).unwrap();
            assert_eq!(found.archive(), archive);
        }
        assert_eq!(Architecture::of("sparc64", false, "sparc64"), None);
        assert_eq!(Architecture::of("aarch64", false, "aarch64_be"), None);
    }

    #[test]
    fn a_program_of_this_machine_passes() {
        let here = Architecture::here().unwrap();
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        here.check(&own).unwrap();
        here.check(&program::xray("26.3.27")).unwrap();
    }

    #[test]
    fn other_programs_are_named() {
        let intel = Architecture::of("x86_64", true, "x86_64").unwrap();
        let arm = Architecture::of("aarch64", true, "aarch64").unwrap();
        let refused = intel.check(&program::header(183, true, true)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the core is the one of Xray-linux-arm64-v8a.zip, and this machine needs that of Xray-linux-64.zip"
        );
        assert!(arm.check(&program::header(183, true, true)).is_ok());
        assert!(arm.check(&program::header(62, true, true)).is_err());
        for foreign in [
            program::header(3, false, true),
            program::header(22, true, false),
            program::header(9999, true, true),
        ] {
            let refused = intel.check(&foreign).unwrap_err();
            assert!(matches!(refused, Error::OtherMachine { .. }), "{refused}");
        }
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let here = Architecture::here().unwrap();
        let mut object = program::header(62, true, true);
        object[16] = 1;
        for bytes in [
            &b""[..],
            b"#!/bin/sh\necho Xray 26.3.27 (Xray)\n",
            &program::header(62, true, true)[..19],
            &object,
        ] {
            assert!(matches!(here.check(bytes), Err(Error::NotAProgram)));
        }
    }
}
