//! Cookies: which of them may tell who a caller is.

use crate::format::digest::Digest;

/// Names of cookies that identify nobody, in order; one that ends in `*` stands for all that begin
/// like it, unless what follows has a word like `session`, `auth`, `token` or `user` in it: then an
/// application has named a cookie of its own like this.
///
/// They are set by load balancers, bot protection, analytics, consent banners and protection
/// against request forgery, often anew at each response, so that a retry comes with other values.
/// A cookie that holds a session is never here, such as `AWSELBAuthSessionCookie` or
/// `CF_Authorization`. Where these are too many or too few,
/// [`session_cookies`](crate::IdempotencyLayer::session_cookies) names those that count.
pub const UNIDENTIFYING_COOKIES: &[&str] = &[
    // ASP.NET Core antiforgery, https://learn.microsoft.com/aspnet/core/security/anti-request-forgery
    ".AspNetCore.Antiforgery.*",
    // Akamai, https://techdocs.akamai.com/property-mgr/docs/know-your-cookies
    "AKA_A2",
    // Adobe Analytics, https://experienceleague.adobe.com/docs/core-services/interface/ec-cookies/cookies-analytics.html
    "AMCVS_*",
    "AMCV_*",
    // Amplitude, https://amplitude.com/docs/sdks/analytics/browser/cookies-and-consent-management
    "AMP_*",
    // Azure App Service, https://learn.microsoft.com/azure/app-service/configure-common
    "ARRAffinity",
    "ARRAffinitySameSite",
    // Azure Front Door, https://learn.microsoft.com/azure/frontdoor/routing-methods
    "ASLBSA",
    "ASLBSACORS",
    // AWS, https://docs.aws.amazon.com/elasticloadbalancing/latest/application/edit-target-group-attributes.html
    "AWSALB",
    "AWSALBAPP-*",
    "AWSALBCORS",
    "AWSALBTG",
    "AWSALBTGCORS",
    // AWS, https://docs.aws.amazon.com/elasticloadbalancing/latest/classic/elb-sticky-sessions.html
    "AWSELB",
    "AWSELBCORS",
    // Azure Application Gateway, https://learn.microsoft.com/azure/application-gateway/configuration-http-settings
    "ApplicationGatewayAffinity",
    "ApplicationGatewayAffinityCORS",
    // F5 BIG-IP, https://my.f5.com/manage/s/article/K6917
    "BIGipServer*",
    // Cookiebot, https://www.cookiebot.com/en/cookie-declaration/
    "CookieConsent",
    // Google Cloud, https://cloud.google.com/load-balancing/docs/backend-service
    "GCILB",
    "GCLB",
    // ingress-nginx, https://kubernetes.github.io/ingress-nginx/examples/affinity/cookie/
    "INGRESSCOOKIE",
    // OneTrust, https://www.cookiepro.com/knowledge/onetrust-cookies/
    "OptanonAlertBoxClosed",
    "OptanonConsent",
    // Apache, https://httpd.apache.org/docs/2.4/mod/mod_proxy_balancer.html
    "ROUTEID",
    // HAProxy, https://docs.haproxy.org/3.0/configuration.html#4.2-cookie
    "SERVERID",
    // Angular, https://angular.dev/best-practices/security; Laravel, https://laravel.com/docs/csrf
    "XSRF-TOKEN",
    // Auth.js, https://authjs.dev/reference/core#cookies
    "__Host-authjs.csrf-token",
    // csrf-csrf, https://github.com/Psifi-Solutions/csrf-csrf
    "__Host-csrf*",
    "__Host-next-auth.csrf-token",
    "__Host-psifi.x-csrf-token",
    // ASP.NET, https://learn.microsoft.com/aspnet/web-api/overview/security/preventing-cross-site-request-forgery-csrf-attacks
    "__RequestVerificationToken*",
    // Cloudflare, https://developers.cloudflare.com/fundamentals/reference/policies-compliances/cloudflare-cookies/
    "__cf_bm",
    "__cflb",
    "__cfruid",
    "__cfseq",
    "__cfwaitingroom*",
    // Google advertising, https://policies.google.com/technologies/cookies
    "__gads",
    "__gpi",
    // HubSpot, https://knowledge.hubspot.com/privacy-and-consent/what-cookies-does-hubspot-set-in-a-visitor-s-browser
    "__hssc",
    "__hssrc",
    "__hstc",
    // Google Analytics, https://developers.google.com/analytics/devguides/collection/gajs/cookie-usage
    "__utma",
    "__utmb",
    "__utmc",
    "__utmt*",
    "__utmv",
    "__utmx",
    "__utmxx",
    "__utmz",
    "_abck",
    "_cfuvid",
    // Microsoft Clarity, https://learn.microsoft.com/clarity/setup-and-installation/cookie-list
    "_clck",
    "_clsk",
    // csurf, https://github.com/expressjs/csurf; Yii, https://www.yiiframework.com/doc/guide/2.0/en/security-best-practices
    "_csrf",
    "_csrf-backend",
    "_csrf-frontend",
    "_csrf_token",
    // Datadog, https://docs.datadoghq.com/real_user_monitoring/browser/
    "_dd_s",
    // Meta, https://developers.facebook.com/docs/marketing-api/conversions-api/parameters/fbp-and-fbc
    "_fbc",
    "_fbp",
    // Google Analytics, https://support.google.com/analytics/answer/11397207
    "_ga",
    "_ga_*",
    "_gac_*",
    "_gat",
    "_gat_*",
    "_gcl_*",
    "_gid",
    // gorilla/csrf, https://github.com/gorilla/csrf
    "_gorilla_csrf",
    // Hotjar, https://help.hotjar.com/hc/en-us/articles/6952777582999
    "_hjAbsoluteSessionInProgress",
    "_hjFirstSeen",
    "_hjIncludedIn*",
    "_hjSessionUser_*",
    "_hjSession_*",
    "_hjTLDTest",
    "_hjid",
    // Matomo, https://matomo.org/faq/general/faq_146/
    "_pk_cvar.*",
    "_pk_hsr.*",
    "_pk_id.*",
    "_pk_ref.*",
    "_pk_ses.*",
    // HUMAN, https://docs.humansecurity.com/applications/cookies
    "_px2",
    "_px3",
    "_pxhd",
    "_pxvid",
    // Snowplow, https://docs.snowplow.io/docs/sources/trackers/web-trackers/cookies-and-local-storage/
    "_sp_id.*",
    "_sp_ses.*",
    // TikTok, https://ads.tiktok.com/help/article/using-cookies-with-tiktok-pixel
    "_ttp",
    // Microsoft Advertising, https://help.ads.microsoft.com/#apex/ads/en/53056/2
    "_uetsid",
    "_uetvid",
    // VWO, https://help.vwo.com/hc/en-us/articles/360033991853
    "_vis_opt_*",
    "_vwo_*",
    "ai_session",
    // Azure Application Insights, https://learn.microsoft.com/azure/azure-monitor/app/javascript-sdk
    "ai_user",
    // Segment, https://segment.com/docs/connections/sources/catalog/libraries/website/javascript/identity/
    "ajs_anonymous_id",
    "ajs_group_id",
    "ajs_user_id",
    "ak_bmsc",
    "amplitude_id*",
    "authjs.csrf-token",
    "bm_mi",
    "bm_s",
    "bm_so",
    "bm_ss",
    "bm_sv",
    "bm_sz",
    "cf_chl_*",
    "cf_clearance",
    "cf_ob_info",
    "cf_use_ob",
    // Cookie Consent by Osano, https://www.osano.com/cookieconsent/documentation/
    "cookieconsent_status",
    // CookieYes, https://www.cookieyes.com/documentation/
    "cookieyes-consent",
    // Symfony, https://symfony.com/doc/current/security/csrf.html
    "csrf-token_*",
    "csrf_token",
    // Django, https://docs.djangoproject.com/en/stable/ref/settings/#csrf-cookie-name
    "csrftoken",
    // DataDome, https://docs.datadome.co/docs/cookie-session-storage
    "datadome",
    // Dynatrace, https://docs.dynatrace.com/docs/manage/data-privacy-and-security/data-privacy/cookies
    "dtCookie*",
    "dtLatC",
    "dtPC",
    "dtSa",
    // IAB Europe, https://github.com/InteractiveAdvertisingBureau/GDPR-Transparency-and-Consent-Framework
    "euconsent-v2",
    "eupubconsent-v2",
    "hubspotutk",
    // Imperva, https://docs.imperva.com/bundle/cloud-application-security/page/cookies.htm
    "incap_ses_*",
    "next-auth.csrf-token",
    "nlbi_*",
    // Optimizely, https://support.optimizely.com/hc/en-us/articles/4410289814797
    "optimizelyBuckets",
    "optimizelyDomainTestCookie",
    "optimizelyEndUserId",
    "optimizelyOptOut",
    "optimizelyPendingLogEvents",
    "optimizelyRedirectData",
    "optimizelySegments",
    "optimizelySession",
    "psifi.x-csrf-token",
    "rxVisitor",
    "rxvt",
    "usprivacy",
    "visid_incap_*",
];

/// Whether a cookie of this name identifies nobody.
pub(super) fn is_unidentifying(name: &[u8]) -> bool {
    let Some(start) = name.get(..2) else {
        return false;
    };
    // Names are in order, and all have more than two bytes.
    let begin = |pattern: &&str| &pattern.as_bytes()[..2] < start;
    let first = UNIDENTIFYING_COOKIES.partition_point(begin);
    UNIDENTIFYING_COOKIES[first..]
        .iter()
        .map(|pattern| pattern.as_bytes())
        .take_while(|pattern| pattern.starts_with(start))
        .any(|pattern| match pattern.strip_suffix(b"*") {
            Some(prefix) => name
                .strip_prefix(prefix)
                .is_some_and(|rest| !is_telling(rest)),
            None => name == pattern,
        })
}

/// Whether the rest of a name says that the cookie is an application's own, such as
/// `_gat_session`. One too many costs a refusal; one too few, somebody else's response.
fn is_telling(rest: &[u8]) -> bool {
    const WORDS: [&[u8]; 8] = [
        b"account", b"auth", b"jwt", b"login", b"sess", b"sid", b"token", b"user",
    ];
    WORDS.iter().any(|word| {
        rest.windows(word.len())
            .any(|part| part.eq_ignore_ascii_case(word))
    })
}

/// A cookie of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cookie<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
}

/// Reads the cookies of a field's lines. HTTP/2 sends a line for each, if it likes.
pub(super) fn read<'a>(lines: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = Cookie<'a>> {
    lines
        .flat_map(|line| line.split(|byte| *byte == b';'))
        .map(<[u8]>::trim_ascii)
        .filter(|pair| !pair.is_empty())
        .map(|pair| match memchr::memchr(b'=', pair) {
            Some(end) => Cookie {
                name: pair[..end].trim_ascii_end(),
                value: pair[end + 1..].trim_ascii_start(),
            },
            // As browsers have it: a cookie without a name.
            None => Cookie {
                name: &[],
                value: pair,
            },
        })
}

/// Feeds cookies by name; those of one name stay in their order, for readers differ on which one
/// counts.
pub(super) fn feed(cookies: &mut [Cookie<'_>], digest: &mut Digest) {
    cookies.sort_by_key(|cookie| cookie.name);
    digest.count(cookies.len());
    for cookie in cookies {
        digest.field(cookie.name);
        digest.field(cookie.value);
    }
}

/// Collects cookies, without an allocation unless they are many.
pub(super) struct Jar<'a> {
    few: [Cookie<'a>; 16],
    many: Vec<Cookie<'a>>,
    length: usize,
}

impl<'a> Jar<'a> {
    pub(super) fn of(cookies: impl Iterator<Item = Cookie<'a>>) -> Self {
        let mut jar = Self {
            few: [Cookie::default(); 16],
            many: Vec::new(),
            length: 0,
        };
        for cookie in cookies {
            match jar.few.get_mut(jar.length) {
                Some(place) => *place = cookie,
                None => {
                    if jar.many.is_empty() {
                        jar.many.extend(jar.few);
                    }
                    jar.many.push(cookie);
                }
            }
            jar.length += 1;
        }
        jar
    }

    pub(super) fn cookies(&mut self) -> &mut [Cookie<'a>] {
        match self.many.is_empty() {
            true => &mut self.few[..self.length],
            false => &mut self.many,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::digest::Domain;

    #[test]
    fn names_that_identify_nobody_are_in_order_and_long_enough() {
        assert!(UNIDENTIFYING_COOKIES.is_sorted_by(|one, next| one < next));
        for pattern in UNIDENTIFYING_COOKIES {
            let stem = pattern.trim_end_matches('*');
            assert!(stem.len() >= 3 && !stem.contains('*'), "{pattern}");
            assert!(is_unidentifying(stem.as_bytes()), "{pattern}");
            let longer = format!("{stem}Q");
            assert_eq!(
                is_unidentifying(longer.as_bytes()),
                UNIDENTIFYING_COOKIES.iter().any(|other| other
                    .strip_suffix('*')
                    .is_some_and(|prefix| longer.starts_with(prefix))),
                "{pattern}"
            );
        }
    }

    #[test]
    fn cookies_that_hold_a_session_count() {
        for name in [
            "session",
            "sessionid",
            "SESSION",
            "JSESSIONID",
            "PHPSESSID",
            "laravel_session",
            "connect.sid",
            "ASP.NET_SessionId",
            ".AspNetCore.Cookies",
            ".AspNetCore.Identity.Application",
            "__Host-session",
            "__Secure-next-auth.session-token",
            "authjs.session-token",
            "AWSELBAuthSessionCookie-0",
            "CF_Authorization",
            "_gateway_session",
            "_gitlab_session",
            "_oauth2_proxy",
            "_csrf_session",
            "csrf_access_token",
            "remember_token",
            "bm",
            "_",
            "",
        ] {
            assert!(!is_unidentifying(name.as_bytes()), "{name}");
        }
    }

    fn pairs(lines: &[&str]) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        read(lines.iter().map(|line| line.as_bytes()))
            .map(|cookie| (text(cookie.name), text(cookie.value)))
            .collect()
    }

    #[test]
    fn cookies_are_read_from_all_lines() {
        let owned = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let expected = [owned("a", "1"), owned("b", "x=y"), owned("", "c")];
        assert_eq!(pairs(&["a=1; b=x=y; c"]), expected);
        assert_eq!(pairs(&["a=1", "b=x=y", "c"]), expected);
        assert_eq!(pairs(&[" a = 1 ;;b=x=y;", "", "; c"]), expected);
        // Quotes are part of a value: RFC 6265, section 5.2.
        assert_eq!(pairs(&["a=\"1\""]), [owned("a", "\"1\"")]);
    }

    fn fed(cookies: &[(String, String)]) -> [u8; 32] {
        let line: Vec<_> = cookies
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let line = line.join("; ");
        let mut jar = Jar::of(read([line.as_bytes()].into_iter()));
        let mut digest = Digest::new(Domain::Test);
        feed(jar.cookies(), &mut digest);
        digest.finish()
    }

    proptest! {
        #[test]
        fn the_order_of_cookies_does_not_matter(
            cookies in proptest::collection::btree_map("[a-z]{1,3}", "[a-z=\"]{0,3}", 0..40),
            seed in any::<proptest::sample::Index>(),
        ) {
            let mut cookies: Vec<_> = cookies.into_iter().collect();
            let base = fed(&cookies);
            if !cookies.is_empty() {
                let middle = seed.index(cookies.len());
                cookies.rotate_left(middle);
            }
            prop_assert_eq!(fed(&cookies), base);
        }

        #[test]
        fn another_value_or_another_order_of_one_name_matters(
            one in proptest::collection::vec(("[ab]", "[ab]{0,1}"), 0..20),
            other in proptest::collection::vec(("[ab]", "[ab]{0,1}"), 0..20),
        ) {
            let of = |cookies: &[(String, String)], wanted: &str| -> Vec<String> {
                let cookies = cookies.iter().filter(|(name, _)| name == wanted);
                cookies.map(|(_, value)| value.clone()).collect()
            };
            let same = ["a", "b"].iter().all(|name| of(&one, name) == of(&other, name));
            prop_assert_eq!(fed(&one) == fed(&other), same);
        }
    }
}
