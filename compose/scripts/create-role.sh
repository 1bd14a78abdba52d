#!/bin/sh
# Runs once, when the image makes a new cluster. The application's role owns its database and is no superuser; the superuser
# has no password, so it can log in only inside the container.
set -eu
psql --no-psqlrc -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'END'
\getenv password POSTGRES_PASSWORD
CREATE ROLE yyc3 LOGIN PASSWORD :'password';
ALTER DATABASE :"DBNAME" OWNER TO yyc3;
ALTER ROLE :"USER" PASSWORD NULL;
END
