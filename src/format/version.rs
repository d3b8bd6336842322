//! The versions of everything that is written. `docs/formats.md` says what each of them covers and
//! what a change of it takes.
//!
//! A digest's version is hashed with it, so that digests of two versions never meet.

/// The digest that names a record.
pub(crate) const RECORD_KEY: u8 = 1;
/// The key that is made of fields of a body.
pub(crate) const KEY_FIELDS: u8 = 1;
/// The key for a step of the work under a key.
pub(crate) const DERIVED_KEY: u8 = 1;
/// The fingerprint of a request. It is part of each recipe's id.
pub(crate) const REQUEST: u8 = 1;
/// The fingerprint of work that is no HTTP request. It is part of the id of that work's recipe.
pub(crate) const INPUTS: u8 = 1;
/// The digest of a caller. It is part of each recipe's id.
pub(crate) const CALLER: u8 = 1;
/// The id of a recipe.
pub(crate) const RECIPE: u8 = 1;
/// The name of an attempt that others are told.
pub(crate) const HOLDER: u8 = 1;
/// The frame of a recorded answer, and the table of header names that it uses.
pub(crate) const FRAME: u8 = 1;
/// The one before, which only tests have made.
#[cfg(test)]
pub(crate) const FRAME_BEFORE: u8 = 0;
/// The byte form of a record.
pub(crate) const RECORD: u8 = 2;
/// The one before, which has no extras.
pub(crate) const RECORD_BEFORE: u8 = 1;
/// What a near tier keeps for the record of another store.
pub(crate) const NEAR: u8 = 1;
/// The item of a record in DynamoDB, with the head of its answer and its chunks.
#[cfg(feature = "dynamodb")]
pub(crate) const DYNAMODB_ITEM: u64 = 2;
/// The one before, which has an attribute for each part of a claim.
#[cfg(feature = "dynamodb")]
pub(crate) const DYNAMODB_ITEM_BEFORE: u64 = 1;
