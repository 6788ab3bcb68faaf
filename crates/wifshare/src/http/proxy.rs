//! Selects the proxy for a host, with curl's syntax of `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`.

use std::collections::BTreeMap;

use http::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::environment::Environment;
use crate::wrapping::Wrapping;

/// The configured proxy, and the hosts that are excluded from it.
#[derive(Debug, Default)]
pub(super) struct Proxies {
    matcher: Option<Matcher>,
    /// Hosts that are excluded at this port only (`NO_PROXY=HOST:443`).
    at_ports: BTreeMap<u16, Matcher>,
    /// What is wrong with the proxy's URL. Excluded hosts can be reached nevertheless.
    broken: Option<String>,
}

impl Proxies {
    /// Reads each name in upper and lower case. `HTTP_PROXY` is not needed: plain http is only for loopback, which
    /// never uses a proxy.
    pub(super) fn new(environment: &Environment) -> Proxies {
        let find = |names: [&'static str; 2]| names.into_iter().find_map(|name| Some((name, environment.text(name)?)));
        let named = find(["HTTPS_PROXY", "https_proxy"]).or_else(|| find(["ALL_PROXY", "all_proxy"]));
        let Some((variable, value)) = named else { return Proxies::default() };
        let (proxy, broken) = match normal_form(value) {
            Ok(proxy) => (proxy, None),
            Err(what) => {
                ("http://unusable.invalid".to_owned(), Some(format!("{variable} is not the URL of a proxy: {what}")))
            }
        };
        let (everywhere, at_ports) = exceptions(find(["NO_PROXY", "no_proxy"]).map_or("", |(_, list)| list));
        let matcher = |hosts: &[String]| Matcher::builder().all(proxy.clone()).no(hosts.join(",")).build();
        Proxies {
            matcher: Some(matcher(&everywhere)),
            at_ports: at_ports.iter().map(|(port, hosts)| (*port, matcher(hosts))).collect(),
            broken,
        }
    }

    /// The proxy for this URL; `None` for a direct connection.
    ///
    /// # Errors
    /// What is wrong with the proxy's URL.
    pub(super) fn intercept(&self, url: &Uri) -> Result<Option<Intercept>, String> {
        let Some(proxy) = self.matcher.as_ref().and_then(|matcher| matcher.intercept(url)) else { return Ok(None) };
        let is_excepted = |matcher: &Matcher| matcher.intercept(url).is_none();
        if self.at_ports.get(&url.port_u16().unwrap_or(443)).is_some_and(is_excepted) {
            return Ok(None);
        }
        match &self.broken {
            Some(what) => Err(what.clone()),
            None => Ok(Some(proxy)),
        }
    }
}

/// Converts to `SCHEME://USER:PASSWORD@HOST:PORT`, with percent-encoded user and password. The last `@` ends them.
fn normal_form(value: &str) -> Result<String, String> {
    if let Some(wrapping @ (Wrapping::Quotes | Wrapping::Unexpanded(_))) = Wrapping::of_id(value) {
        return Err(wrapping.to_string());
    }
    let (scheme, rest) = value.split_once("://").unwrap_or(("http", value));
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if path.contains('@') {
        return Err("`/`, `?` or `#` in the user name or password has to be percent-encoded (%2F, %3F, %23)".to_owned());
    }
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    if !host.starts_with('[') && host.matches(':').count() > 1 {
        return Err("an IPv6 address has to be in brackets: http://[::1]:3128".to_owned());
    }
    let port = host.rsplit_once(':').map(|(_, port)| port).filter(|_| !host.ends_with(']'));
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err("its port is not a number up to 65535".to_owned());
    }
    if host.is_empty() || host.parse::<http::uri::Authority>().is_err() {
        return Err("its host is missing or contains invalid characters".to_owned());
    }
    let encoded = |text: &str| {
        let plain = percent_decode_str(text).collect::<Vec<u8>>();
        percent_encoding::percent_encode(&plain, NON_ALPHANUMERIC).to_string()
    };
    let user = match user.map(|user| user.split_once(':').unwrap_or((user, ""))) {
        Some((user, password)) => format!("{}:{}@", encoded(user), encoded(password)),
        None => String::new(),
    };
    Ok(format!("{}://{user}{host}", utf8_percent_encode(&scheme.to_ascii_lowercase(), percent_encoding::CONTROLS)))
}

/// The entries of `NO_PROXY`: those for all ports, and those for one port.
fn exceptions(list: &str) -> (Vec<String>, BTreeMap<u16, Vec<String>>) {
    let mut everywhere = Vec::new();
    let mut at_ports: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    let entries = list.split(|c: char| c == ',' || c == ';' || c.is_whitespace()).filter(|entry| !entry.is_empty());
    for entry in entries {
        let entry = entry.split_once("://").map_or(entry, |(_, rest)| rest).trim_end_matches('/');
        let is_address = entry.parse::<std::net::Ipv6Addr>().is_ok() || entry.contains('/');
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) if !is_address && !entry.ends_with(']') => match port.parse() {
                Ok(port) => (host, Some(port)),
                Err(_) => (entry, None),
            },
            _ => (entry, None),
        };
        let host = host.trim_matches(['[', ']']);
        // Others write `.example.com` for `*.example.com`.
        let host = if host == "*" { host } else { host.trim_start_matches('*') }.to_ascii_lowercase();
        match port {
            Some(port) => at_ports.entry(port).or_default().push(host),
            None => everywhere.push(host),
        }
    }
    (everywhere, at_ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::new(&variables.iter().copied().collect())
    }

    /// The proxy for a host that is not excluded, and the `Proxy-Authorization` that it receives.
    fn asked_by(value: &str) -> Result<(String, Option<String>), String> {
        let proxy = proxies(&[("HTTPS_PROXY", value)]).intercept(&Uri::from_static("https://api.example/"))?;
        let proxy = proxy.expect("there is a proxy");
        let authorization = proxy.basic_auth().map(|value| value.to_str().expect("a text").to_owned());
        Ok((proxy.uri().to_string(), authorization))
    }

    #[test]
    fn last_at_sign_separates_user_and_host() {
        use base64::Engine;
        let basic = |text: &str| Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text)));
        for (value, proxy, user) in [
            ("http://proxy.example:3128", "http://proxy.example:3128/", None),
            ("proxy.example:3128", "http://proxy.example:3128/", None),
            ("proxy.example", "http://proxy.example/", None),
            ("HTTP://proxy.example:3128/", "http://proxy.example:3128/", None),
            ("http://[fd00::1]:3128", "http://[fd00::1]:3128/", None),
            ("http://joe:pass@proxy.example", "http://proxy.example/", basic("joe:pass")),
            ("http://joe:p@ss@proxy.example:3128", "http://proxy.example:3128/", basic("joe:p@ss")),
            ("http://joe@corp:p@s@s@proxy.example", "http://proxy.example/", basic("joe@corp:p@s@s")),
            ("joe:p@ss@proxy.example:3128", "http://proxy.example:3128/", basic("joe:p@ss")),
            ("http://joe:p%40ss%2F@proxy.example", "http://proxy.example/", basic("joe:p@ss/")),
            ("http://joe:a:b@[::1]:8", "http://[::1]:8/", basic("joe:a:b")),
            ("http://joe@proxy.example", "http://proxy.example/", basic("joe:")),
            ("http://DOM\\joe:p\u{e4} s@proxy.example", "http://proxy.example/", basic("DOM\\joe:p\u{e4} s")),
        ] {
            assert_eq!(asked_by(value), Ok((proxy.to_owned(), user)), "{value}");
        }
    }

    #[test]
    fn unusable_proxy_is_an_error_and_not_skipped() {
        for (value, words) in [
            ("http://joe:p/ss@proxy.example", "percent-encoded"),
            ("http://joe:p#ss@proxy.example", "percent-encoded"),
            ("http://fd00::1:3128", "brackets"),
            ("http://proxy.example:port", "port"),
            ("http://proxy.example:99999", "port"),
            ("http://", "host is missing"),
            ("http://joe:secret@", "host is missing"),
            ("http://a b", "host is missing"),
            ("\"http://proxy.example\"", "in quotes"),
            ("${{ vars.PROXY }}", "was not replaced"),
        ] {
            let error = asked_by(value).expect_err(value);
            assert!(error.starts_with("HTTPS_PROXY") && error.contains(words), "{value}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let broken = proxies(&[("ALL_PROXY", "http://a b"), ("NO_PROXY", "api.example")]);
        assert!(matches!(broken.intercept(&Uri::from_static("https://api.example/")), Ok(None)));
        assert!(broken.intercept(&Uri::from_static("https://other.example/")).is_err());
    }

    #[test]
    fn no_proxy_entry_may_name_a_port() {
        let is_direct = |list: &str, url: &str| {
            let proxies = proxies(&[("https_proxy", "http://proxy.example"), ("no_proxy", list)]);
            proxies.intercept(&url.parse().expect("a URL")).expect("a proxy").is_none()
        };
        for (list, url, direct) in [
            ("api.example:443", "https://api.example/", true),
            ("api.example:443", "https://api.example:443/", true),
            ("api.example:443", "https://api.example:8443/", false),
            ("api.example:8443", "https://api.example/", false),
            (".example:443", "https://api.example/", true),
            ("*.example", "https://api.example/", true),
            ("*.example:443", "https://api.example/", true),
            ("API.Example", "https://api.example/", true),
            ("https://api.example/", "https://api.example/", true),
            ("other,api.example", "https://api.example/", true),
            ("other api.example", "https://api.example/", true),
            ("*", "https://api.example/", true),
            ("*:443", "https://api.example/", true),
            ("10.0.0.1:443", "https://10.0.0.1/", true),
            ("10.0.0.0/8", "https://10.2.3.4/", true),
            ("[fd00::1]:443", "https://[fd00::1]/", true),
            ("[fd00::1]", "https://[fd00::1]:9/", true),
            ("fd00::1", "https://[fd00::1]/", true),
            ("notapi.example", "https://api.example/", false),
            ("", "https://api.example/", false),
        ] {
            assert_eq!(is_direct(list, url), direct, "NO_PROXY={list} {url}");
        }
    }
}
