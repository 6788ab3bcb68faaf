# wifshare alone, for `COPY --from=` into an image of your own, or to run by itself. It has not been built: where it was
# written there is no container engine.
#
#   docker build --tag wifshare .
#   docker run --rm --env-file variables wifshare doctor
FROM rust:1.95-alpine AS build
RUN apk add --no-cache musl-dev
WORKDIR /source
COPY . .
RUN cargo build --release --locked --package wifshare-cli

FROM alpine:3.22
# The trust roots of the system; state goes to a directory that is this user's alone.
RUN apk add --no-cache ca-certificates && adduser -D -u 10001 wifshare
COPY --from=build /source/target/release/wifshare /usr/local/bin/wifshare
USER 10001
ENTRYPOINT ["wifshare"]
