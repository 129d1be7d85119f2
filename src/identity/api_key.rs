//! The API key, made once and kept.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Error;
use crate::disk;

const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Identity {
    format: u32,
    api_key: Uuid,
}

/// The key that is kept in the state folder; one is made when there is none.
///
/// # Errors
/// When the file can't be read or written, or is not one of ours.
pub fn api_key(state_dir: &Path) -> Result<Uuid, Error> {
    let path = state_dir.join("identity");
    let fail = |source| Error::Io {
        path: path.clone(),
        source,
    };
    let unusable = |reason: String| Error::Unusable {
        path: path.clone(),
        reason,
    };
    match std::fs::read(&path) {
        Ok(bytes) => {
            // The parser's own words could repeat a part of the key.
            let identity: Identity = serde_json::from_slice(&bytes)
                .map_err(|_| unusable("not the identity that a node wrote".to_owned()))?;
            if identity.format != FORMAT {
                return Err(unusable(format!(
                    "has format {}, this version reads {FORMAT}",
                    identity.format
                )));
            }
            Ok(identity.api_key)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => replace_api_key(state_dir),
        Err(error) => Err(fail(error)),
    }
}

/// Another key in the place of the one that is kept there, if any is.
///
/// # Errors
/// When the file can't be written; the old key is still there then.
pub fn replace_api_key(state_dir: &Path) -> Result<Uuid, Error> {
    let path = state_dir.join("identity");
    let fail = |source| Error::Io {
        path: path.clone(),
        source,
    };
    let identity = Identity {
        format: FORMAT,
        api_key: Uuid::new_v4(),
    };
    let text = serde_json::to_string_pretty(&identity).map_err(|error| fail(error.into()))?;
    disk::write_private(&path, format!("{text}\n").as_bytes()).map_err(fail)?;
    Ok(identity.api_key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_made_once_and_only_we_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let key = api_key(folder.path()).unwrap();
        assert_eq!(api_key(folder.path()).unwrap(), key);
        let mode = std::fs::metadata(folder.path().join("identity"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_an_error_that_does_not_show_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity");
        std::fs::write(&path, "{\"format\":1,\"api_key\":\"secret-but-wrong\"}").unwrap();
        let error = api_key(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("identity") && !error.contains("secret-but-wrong"),
            "{error}"
        );
        std::fs::write(
            &path,
            format!("{{\"format\":2,\"api_key\":\"{}\"}}", Uuid::nil()),
        )
        .unwrap();
        assert!(
            api_key(folder.path())
                .unwrap_err()
                .to_string()
                .contains("has format 2")
        );
    }
}
