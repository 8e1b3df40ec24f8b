"""Settings for Django's own tests on a throw-away server, whose socket is in $WILD_SOCKET."""

import os


def database(name):
    return {"ENGINE": "django.db.backends.postgresql", "NAME": name, "USER": "postgres", "HOST": os.environ["WILD_SOCKET"]}


DATABASES = {"default": database("wild"), "other": database("wild_other")}
SECRET_KEY = "of a throw-away server"
USE_TZ = False
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
TEST_RUNNER = "django_runner.Runner"
