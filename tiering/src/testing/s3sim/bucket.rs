//! The bucket: objects in a map, put whole or not at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use parking_lot::Mutex;
use s3s::{S3, S3Request, S3Response, S3Result, dto::*, s3_error};

use super::{
    Guest, Model,
    link::{Link, Outgoing, come_in},
};

/// Names that a LIST gives at most, as S3.
const PAGE: usize = 1000;
/// A body at most, as S3.
const OBJECT_BYTES_MAX: i64 = 5 << 30;

#[derive(Clone)]
struct Stored {
    bytes: Bytes,
    tag: u64,
    at: SystemTime,
}

impl Stored {
    fn e_tag(&self) -> ETag {
        ETag::Strong(format!("{:016x}", self.tag))
    }
}

#[derive(Default)]
struct Objects {
    by_key: BTreeMap<String, Stored>,
    bytes: u64,
}

pub(super) struct Bucket {
    model: Arc<Model>,
    objects: Mutex<Objects>,
    tags: AtomicU64,
}

impl Bucket {
    pub(super) fn new(model: Arc<Model>) -> Self {
        Self { model, objects: Mutex::default(), tags: AtomicU64::new(1) }
    }

    fn known(&self, bucket: &str) -> S3Result<()> {
        if bucket == self.model.options.bucket { Ok(()) } else { Err(s3_error!(NoSuchBucket)) }
    }

    fn find(&self, key: &str) -> S3Result<Stored> {
        self.objects.lock().by_key.get(key).cloned().ok_or_else(|| s3_error!(NoSuchKey))
    }
}

#[async_trait::async_trait]
impl S3 for Bucket {
    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let guest = Guest::enter(&self.model);
        let faults = self.model.arrive().await?;
        self.known(&input.bucket)?;
        let object = self.find(&input.key)?;
        let whole = object.bytes.len() as u64;
        let range = match input.range {
            Some(range) => range.check(whole).map_err(|_| s3_error!(InvalidRange))?,
            None => 0..whole,
        };
        let mut body = object.bytes.slice(range.start as usize..range.end as usize);
        if self.model.strikes(faults.wrong) && !body.is_empty() {
            let mut wrong = BytesMut::from(body.as_ref());
            let bit = self.model.throw() as usize % (wrong.len() * 8);
            wrong[bit / 8] ^= 1 << (bit % 8);
            body = wrong.freeze();
        }
        let cut_after = self.model.strikes(faults.cut).then(|| body.len() / 2);
        self.model.requests.lock().bytes_out += body.len() as u64;
        let content_range =
            input.range.map(|_| format!("bytes {}-{}/{whole}", range.start, range.end.saturating_sub(1)));
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(body.len() as i64),
            content_range,
            accept_ranges: Some("bytes".into()),
            e_tag: Some(object.e_tag()),
            last_modified: Some(Timestamp::from(object.at)),
            body: Some(StreamingBlob::new(Outgoing::new(self.model.clone(), body, cut_after, guest))),
            ..Default::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        self.model.arrive().await?;
        self.known(&request.input.bucket)?;
        let object = self.find(&request.input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(object.bytes.len() as i64),
            e_tag: Some(object.e_tag()),
            last_modified: Some(Timestamp::from(object.at)),
            ..Default::default()
        }))
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        self.model.requests.lock().puts += 1;
        let faults = self.model.arrive().await?;
        self.known(&input.bucket)?;
        let expected = input.content_length.unwrap_or(0).clamp(0, OBJECT_BYTES_MAX) as usize;
        let mut bytes = BytesMut::with_capacity(expected);
        if let Some(mut body) = input.body {
            let own = Link::new(self.model.options.stream_bytes_s);
            while let Some(piece) = body.next().await {
                let piece = piece.map_err(|error| s3_error!(IncompleteBody, "{error}"))?;
                if bytes.len() + piece.len() > expected {
                    return Err(s3_error!(EntityTooLarge));
                }
                come_in(&self.model, &own, piece.len()).await;
                bytes.extend_from_slice(&piece);
            }
        }
        if bytes.len() != expected {
            return Err(s3_error!(IncompleteBody));
        }
        self.model.requests.lock().bytes_in += bytes.len() as u64;
        let stored = Stored {
            bytes: bytes.freeze(),
            tag: self.tags.fetch_add(1, Ordering::Relaxed),
            at: SystemTime::now(),
        };
        let e_tag = stored.e_tag();
        {
            let mut objects = self.objects.lock();
            let old = objects.by_key.get(&input.key);
            if input.if_none_match.as_ref().is_some_and(ETagCondition::is_any) && old.is_some() {
                return Err(s3_error!(PreconditionFailed));
            }
            let without = objects.bytes - old.map_or(0, |old| old.bytes.len() as u64);
            let with = without + stored.bytes.len() as u64;
            if with > self.model.options.capacity_bytes {
                return Err(s3_error!(InternalError, "the simulator is full"));
            }
            objects.bytes = with;
            objects.by_key.insert(input.key, stored);
        }
        if self.model.strikes(faults.lost_answer) {
            return Err(s3_error!(SlowDown));
        }
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(e_tag), ..Default::default() }))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.model.requests.lock().deletes += 1;
        self.model.arrive().await?;
        self.known(&request.input.bucket)?;
        let mut objects = self.objects.lock();
        if let Some(old) = objects.by_key.remove(&request.input.key) {
            objects.bytes -= old.bytes.len() as u64;
        }
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        self.model.requests.lock().lists += 1;
        self.model.arrive().await?;
        self.known(&input.bucket)?;
        let prefix = input.prefix.clone().unwrap_or_default();
        let page = input.max_keys.map_or(PAGE, |keys| usize::try_from(keys).unwrap_or(0).min(PAGE));
        let (mut contents, mut folders, mut last) = (Vec::new(), BTreeSet::new(), None);
        let mut more = false;
        {
            let objects = self.objects.lock();
            // A token is the last name given.
            let from = match input.continuation_token.as_ref().or(input.start_after.as_ref()) {
                Some(after) if *after >= prefix => Bound::Excluded(after),
                _ => Bound::Included(&prefix),
            };
            for (key, object) in objects.by_key.range::<String, _>((from, Bound::Unbounded)) {
                let Some(rest) = key.strip_prefix(&prefix) else { break };
                let folder = match &input.delimiter {
                    Some(delimiter) if !delimiter.is_empty() => {
                        rest.find(delimiter).map(|at| key[..prefix.len() + at + delimiter.len()].to_owned())
                    }
                    _ => None,
                };
                let known = folder.as_ref().is_some_and(|folder| folders.contains(folder));
                if !known && contents.len() + folders.len() == page {
                    more = true;
                    break;
                }
                last = Some(key.clone());
                match folder {
                    Some(folder) => drop(folders.insert(folder)),
                    None => contents.push(Object {
                        key: Some(key.clone()),
                        size: Some(object.bytes.len() as i64),
                        e_tag: Some(object.e_tag()),
                        last_modified: Some(Timestamp::from(object.at)),
                        ..Default::default()
                    }),
                }
            }
        }
        let folders: Vec<_> =
            folders.into_iter().map(|prefix| CommonPrefix { prefix: Some(prefix) }).collect();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            delimiter: input.delimiter,
            max_keys: Some(page as i32),
            key_count: Some((contents.len() + folders.len()) as i32),
            is_truncated: Some(more),
            next_continuation_token: more.then_some(last).flatten(),
            contents: Some(contents),
            common_prefixes: Some(folders),
            ..Default::default()
        }))
    }
}
