#!/bin/sh
# A worker that starts, whatever it is told, and never answers.
exec sleep 1000
