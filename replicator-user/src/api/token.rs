//! The token that requests over TCP bring (RFC 6750).

use std::{fmt, fs::File, io::Read as _, os::unix::fs::MetadataExt as _, path::Path};

use subtle::ConstantTimeEq as _;

use super::limits::{MAX_TOKEN, MIN_TOKEN};

/// A token.
pub(super) struct Token(String);

/// Why a file has no token that can be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// It is everybody's.
    #[error("everyone on this host may read or write it (mode {mode:04o}); `chmod 640` it")]
    Open {
        /// Its permissions.
        mode: u32,
    },
    /// It can be guessed.
    #[error(
        "has {characters} characters; a token has at least {MIN_TOKEN}, such as `openssl rand -hex 32` makes"
    )]
    Short {
        /// How many it has.
        characters: usize,
    },
    /// It cannot stand in a header.
    #[error("must be one line of at most {MAX_TOKEN} printable ASCII characters without blanks")]
    Characters,
}

impl Token {
    /// Reads a token from a file; blanks around it, such as the end of the line, are no part of it.
    pub(super) fn read(path: &Path) -> Result<Self, TokenError> {
        let file = File::open(path)?;
        let mode = file.metadata()?.mode() & 0o7777;
        if mode & 0o006 != 0 {
            return Err(TokenError::Open { mode });
        }
        let mut text = String::new();
        file.take(MAX_TOKEN as u64 + 16).read_to_string(&mut text)?;
        let text = text.trim();
        match text.len() {
            length if length > MAX_TOKEN || !text.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Err(TokenError::Characters)
            }
            characters if characters < MIN_TOKEN => Err(TokenError::Short { characters }),
            _ => Ok(Self(text.to_owned())),
        }
    }

    /// Whether the value of an `Authorization` header brings it. The time that takes tells its length at most.
    pub(super) fn is_in(&self, authorization: &[u8]) -> bool {
        let Some((scheme, token)) = authorization.split_at_checked("Bearer ".len()) else { return false };
        // RFC 9110, section 11.1: the scheme's case is of no matter.
        scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(token.trim_ascii().ct_eq(self.0.as_bytes()))
    }

    /// The value of an `Authorization` header that brings it.
    pub(super) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn read(text: &[u8], mode: u32) -> Result<Token, TokenError> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("replicator-token-{}-{number}", std::process::id()));
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let token = Token::read(&path);
        fs::remove_file(path).unwrap();
        token
    }

    #[test]
    fn a_token_is_long_and_nobody_elses() {
        assert_eq!(read(b"0123456789abcdef\n", 0o640).unwrap().0, "0123456789abcdef");
        assert!(matches!(read(b"0123456789abcdef", 0o644), Err(TokenError::Open { mode: 0o644 })));
        assert!(matches!(read(b"0123456789abcdef", 0o602), Err(TokenError::Open { .. })));
        assert!(matches!(read(b"0123456789abcde\n", 0o600), Err(TokenError::Short { characters: 15 })));
        assert!(matches!(read(b"", 0o600), Err(TokenError::Short { characters: 0 })));
        assert!(matches!(read(b"0123456789abcdef 0123456789abcdef", 0o600), Err(TokenError::Characters)));
        assert!(matches!(read("0123456789abcdefé".as_bytes(), 0o600), Err(TokenError::Characters)));
        assert!(matches!(read(b"0123456789abcdef\xff", 0o600), Err(TokenError::Read(_))));
        assert!(matches!(read(&[b'x'; 5000], 0o600), Err(TokenError::Characters)));
        assert!(matches!(Token::read(Path::new("/nonexistent")), Err(TokenError::Read(_))));
        assert!(matches!(Token::read(Path::new("/")), Err(TokenError::Read(_) | TokenError::Open { .. })));
    }

    #[test]
    fn a_request_brings_it_or_does_not() {
        let token = read(b"0123456789abcdef\n", 0o600).unwrap();
        for right in ["Bearer 0123456789abcdef", "bearer 0123456789abcdef", "Bearer   0123456789abcdef "] {
            assert!(token.is_in(right.as_bytes()), "{right}");
        }
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdeF",
            "Bearer 0123456789abcdef0",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
            "Béarer 0123456789abcdef",
        ] {
            assert!(!token.is_in(wrong.as_bytes()), "{wrong}");
        }
    }
}
