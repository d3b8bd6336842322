use super::*;

const LEASE: Duration = Duration::from_secs(30);
const RETENTION: Duration = Duration::from_secs(3_600);
const SKEW: Duration = Duration::from_secs(1);
const START: Timestamp = Timestamp::from_millis(1_790_000_000_000);
const FIRST: Owner = Owner::from_bytes([1; 16]);
const SECOND: Owner = Owner::from_bytes([2; 16]);
const IDENTITY: Identity = Identity {
    caller: CallerDigest::from_bytes([5; 16]),
    request: Fingerprint::from_bytes([9; 32]),
    recipe: RecipeId::from_bytes(*b"recipe 1"),
};

fn request(owner: Owner, now: Timestamp) -> ClaimRequest<'static> {
    const KEY: &RecordKey = &RecordKey::from_bytes([7; 32]);
    const PARTS: &KeyParts<'_> = &KeyParts {
        namespace: "",
        scope: None,
        method: "POST",
        target: "/",
        key: "k",
    };
    ClaimRequest {
        key: KEY,
        parts: PARTS,
        identity: IDENTITY,
        accepted: &[],
        owner,
        now,
        lease: LEASE,
        retention: RETENTION,
        clock_skew: SKEW,
        take_over: true,
        wants_waiter: false,
        liveness: Liveness::UNKNOWN,
    }
}

fn held() -> Lease {
    request(FIRST, START).lease(FencingToken(START.as_micros()), 1, START)
}

fn other_request(request: ClaimRequest<'static>) -> ClaimRequest<'static> {
    ClaimRequest {
        identity: Identity {
            request: Fingerprint::from_bytes([8; 32]),
            ..IDENTITY
        },
        ..request
    }
}

fn other_caller(request: ClaimRequest<'static>) -> ClaimRequest<'static> {
    ClaimRequest {
        identity: Identity {
            caller: CallerDigest::from_bytes([8; 16]),
            ..request.identity
        },
        ..request
    }
}

fn other_recipe(request: ClaimRequest<'static>) -> ClaimRequest<'static> {
    ClaimRequest {
        identity: Identity {
            caller: CallerDigest::from_bytes([6; 16]),
            request: Fingerprint::from_bytes([7; 32]),
            recipe: RecipeId::from_bytes(*b"recipe 2"),
        },
        ..request
    }
}

fn lapsed_at() -> Timestamp {
    START.plus(LEASE).plus(SKEW).plus(Duration::from_micros(1))
}

#[test]
fn an_absent_record_is_acquired_as_the_first_attempt() {
    assert_eq!(
        decide(None, &request(FIRST, START)),
        Decision::Acquire {
            token: FencingToken(START.as_micros()),
            attempt: 1,
            created_at: START
        }
    );
}

#[test]
fn a_live_lease_is_in_progress_for_others_and_own_for_its_owner() {
    let lease = held();
    let held = Some(Held::InProgress(&lease));
    let last_live_moment = START.plus(LEASE).plus(SKEW);
    for now in [START, last_live_moment] {
        assert_eq!(decide(held, &request(SECOND, now)), Decision::InProgress);
        assert_eq!(decide(held, &request(FIRST, now)), Decision::Own);
        assert_eq!(
            decide(held, &other_request(request(SECOND, now))),
            Decision::Reused
        );
    }
}

#[test]
fn a_lapsed_lease_is_taken_over_only_by_those_who_may() {
    let lease = held();
    let held = Some(Held::InProgress(&lease));
    let now = START.plus(LEASE).plus(SKEW).plus(Duration::from_micros(1));
    assert_eq!(
        decide(held, &request(SECOND, now)),
        Decision::Acquire {
            token: FencingToken(now.as_micros()),
            attempt: 2,
            created_at: START
        }
    );
    let stays = ClaimRequest {
        take_over: false,
        ..request(SECOND, now)
    };
    assert_eq!(decide(held, &stays), Decision::Orphaned);
    assert_eq!(
        decide(held, &other_request(request(SECOND, now))),
        Decision::Reused
    );
}

#[test]
fn another_caller_learns_nothing_else() {
    let lease = held();
    let completed = Held::Completed {
        identity: IDENTITY,
        expires_at: START.plus(RETENTION),
    };
    for held in [Held::InProgress(&lease), completed] {
        for now in [START, lapsed_at()] {
            for guess in [other_request(request(SECOND, now)), request(SECOND, now)] {
                let decision = decide(Some(held), &other_caller(guess));
                assert_eq!(decision, Decision::CallerDiffers);
            }
        }
    }
}

#[test]
fn a_record_of_an_unknown_recipe_is_in_progress_or_not_compared() {
    let lease = held();
    let held = Some(Held::InProgress(&lease));
    let changed = Decision::SettingsChanged {
        recorded: IDENTITY.recipe,
    };
    let live = other_recipe(request(SECOND, START));
    assert_eq!(decide(held, &live), Decision::InProgress);
    let lapsed = other_recipe(request(SECOND, lapsed_at()));
    assert_eq!(decide(held, &lapsed), changed);
    let completed = Held::Completed {
        identity: IDENTITY,
        expires_at: START.plus(RETENTION),
    };
    assert_eq!(decide(Some(completed), &lapsed), changed);
}

#[test]
fn a_record_is_compared_by_the_accepted_recipe_that_made_it() {
    const OTHER: Identity = Identity {
        request: Fingerprint::from_bytes([8; 32]),
        ..IDENTITY
    };
    let completed = Some(Held::Completed {
        identity: IDENTITY,
        expires_at: START.plus(RETENTION),
    });
    let accepting = |accepted: &'static [Identity]| ClaimRequest {
        accepted,
        ..other_recipe(request(SECOND, START))
    };
    assert_eq!(decide(completed, &accepting(&[IDENTITY])), Decision::Replay);
    assert_eq!(decide(completed, &accepting(&[OTHER])), Decision::Reused);
    let lease = held();
    let next = decide(
        Some(Held::InProgress(&lease)),
        &ClaimRequest {
            now: lapsed_at(),
            ..accepting(&[IDENTITY])
        },
    );
    assert!(matches!(next, Decision::Acquire { attempt: 2, .. }));
}

#[test]
fn a_record_is_for_those_who_would_get_its_answer() {
    const ACCEPTING: &[Identity] = &[IDENTITY];
    let claim = request(SECOND, START);
    let accepting = ClaimRequest {
        accepted: ACCEPTING,
        ..other_recipe(claim)
    };
    for (claim, is_its_own) in [
        (claim, true),
        (accepting, true),
        (other_recipe(claim), false),
        (other_caller(claim), false),
        (other_request(claim), false),
    ] {
        assert_eq!(claim.is_for(&IDENTITY), is_its_own, "{:?}", claim.identity);
    }
}

#[test]
fn a_claim_at_another_time_is_otherwise_the_same() {
    let moved = request(SECOND, START).at(lapsed_at());
    assert_eq!(moved.now, lapsed_at());
    assert_eq!(moved.lease, LEASE);
    assert_eq!(moved.owner, SECOND);
}

#[test]
fn a_holder_that_is_alive_in_this_process_keeps_its_lease_at_any_time() {
    let lease = held();
    let held = Some(Held::InProgress(&lease));
    for now in [lapsed_at(), START.plus(RETENTION * 2)] {
        let request = ClaimRequest {
            liveness: Liveness::new(&|owner| owner == FIRST),
            ..request(SECOND, now)
        };
        assert_eq!(decide(held, &request), Decision::InProgress);
        let other = ClaimRequest {
            liveness: Liveness::new(&|owner| owner == SECOND),
            ..request
        };
        assert!(matches!(decide(held, &other), Decision::Acquire { .. }));
    }
}

#[test]
fn an_identity_survives_its_byte_form() {
    let bytes = IDENTITY.to_bytes();
    assert_eq!(Identity::from_bytes(&bytes), Some(IDENTITY));
    assert_eq!(Identity::from_bytes(&bytes[1..]), None);
    assert_eq!(
        Identity::from_bytes(&[bytes.as_slice(), &[0]].concat()),
        None
    );
}

#[test]
fn tokens_and_recipes_are_shown_as_they_are_stored() {
    assert_eq!(FencingToken(1_790).to_string(), "1790");
    assert_eq!(IDENTITY.recipe.to_string(), "7265636970652031");
}

#[test]
fn a_token_grows_even_when_the_clock_goes_back() {
    let lease = Lease {
        deadline: Timestamp::EPOCH,
        ..held()
    };
    let earlier = Timestamp::from_micros(START.as_micros() - 5);
    let Decision::Acquire { token, .. } =
        decide(Some(Held::InProgress(&lease)), &request(SECOND, earlier))
    else {
        panic!("an orphan is taken over");
    };
    assert!(token > lease.token);
}

#[test]
fn a_record_in_progress_is_its_owners_and_a_completed_one_nobodys() {
    let lease = held();
    let lapsed = Lease {
        deadline: Timestamp::EPOCH,
        ..held()
    };
    let holder = lease.holder();
    let stranger = Holder {
        owner: SECOND,
        ..holder
    };
    assert!(is_owned_by(Some(Held::InProgress(&lease)), &holder));
    assert!(is_owned_by(Some(Held::InProgress(&lapsed)), &holder));
    assert!(!is_owned_by(Some(Held::InProgress(&lease)), &stranger));
    assert!(!is_owned_by(None, &holder));
    let completed = Held::Completed {
        identity: lease.identity,
        expires_at: lease.expires_at,
    };
    assert!(!is_owned_by(Some(completed), &holder));
}

#[test]
fn a_renewal_that_comes_late_shortens_nothing() {
    let renewal = Renewal::new(LEASE, RETENTION);
    let second = START.plus(Duration::from_secs(1));
    let mut renewed = held();
    for now in [second, START] {
        renewed.renew(renewal, now);
        assert_eq!(renewed.deadline, second.plus(LEASE));
        assert_eq!(renewed.expires_at, second.plus(LEASE + RETENTION));
    }
}

#[test]
fn an_orphan_is_forgotten_when_its_retention_ends() {
    let lease = held();
    let now = START.plus(RETENTION);
    let stays = ClaimRequest {
        take_over: false,
        ..other_request(request(SECOND, now))
    };
    let decision = decide(Some(Held::InProgress(&lease)), &stays);
    assert!(
        matches!(
            decision,
            Decision::Acquire { token, attempt: 1, created_at } if token > lease.token && created_at == now
        ),
        "{decision:?}"
    );
}

#[test]
fn a_live_lease_outlives_the_records_expiry() {
    let lease = Lease {
        expires_at: START,
        ..held()
    };
    assert_eq!(
        decide(
            Some(Held::InProgress(&lease)),
            &request(SECOND, START.plus(LEASE))
        ),
        Decision::InProgress
    );
}

#[test]
fn a_completed_record_answers_until_it_expires() {
    let held = Some(Held::Completed {
        identity: IDENTITY,
        expires_at: START.plus(RETENTION),
    });
    let last = Timestamp::from_micros(START.plus(RETENTION).as_micros() - 1);
    assert_eq!(decide(held, &request(SECOND, last)), Decision::Replay);
    assert_eq!(
        decide(held, &other_request(request(SECOND, last))),
        Decision::Reused
    );
    assert!(matches!(
        decide(held, &request(SECOND, START.plus(RETENTION))),
        Decision::Acquire { attempt: 1, .. }
    ));
}
