create or replace function unstale.row_1(t public.users) returns text language sql begin atomic select '{' || '"id":' || coalesce('"' || (t).id::text || '"', 'null') || ',"email":' || case when octet_length((t).email) > 8192 then 'true' else coalesce(to_json((t).email)::text, 'null') end || '}'; end;

create or replace function unstale.same_1(old_row public.users, new_row public.users) returns boolean language sql begin atomic select not ((old_row).id is distinct from (new_row).id or (old_row).email is distinct from (new_row).email); end;

create or replace function unstale.table_1() returns regclass language sql stable begin atomic select 'public.users'::regclass; end;

create or replace function unstale.fresh_1(t public.users) returns boolean language sql begin atomic select coalesce((t).updated_at >= clock_timestamp() - unstale.margin(), false); end;

create or replace function unstale.page_1(from_stamp timestamptz, after_stamp timestamptz, page_rows bigint)
    returns table (image text, stamp timestamptz)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    set row_security = off
    set enable_seqscan = off
    set enable_bitmapscan = off
begin atomic
    select unstale.row_1(t.*), t.updated_at from public.users t
     where t.updated_at >= $1 and t.updated_at > $2
     order by t.updated_at fetch first ($3) rows with ties;
end;

create or replace function unstale.insert_1() returns trigger
    language plpgsql security definer
as $body$
declare
    done pg_catalog.bool;
begin
    if pg_catalog.oidne(tg_relid, unstale.table_1()) then
        return null; -- a copy of the table that it was made for
    end if;
    done := unstale.tell(1, unstale.one_row('{"watch":1,"rev":1,"new":', unstale.row_1(new)), unstale.fresh_1(new), true);
    return null;
end
$body$;

create or replace function unstale.update_1() returns trigger
    language plpgsql security definer
as $body$
declare
    same pg_catalog.bool;
    change pg_catalog.text;
    done pg_catalog.bool;
begin
    if pg_catalog.oidne(tg_relid, unstale.table_1()) then
        return null; -- a copy of the table that it was made for
    end if;
    same := unstale.same_1(old, new);
    if same then
        change := unstale.one_row('{"watch":1,"rev":1,"new":', unstale.row_1(new));
    else
        change := unstale.two_rows('{"watch":1,"rev":1,"new":', unstale.row_1(new), unstale.row_1(old));
    end if;
    done := unstale.tell(1, change, same and unstale.fresh_1(new), true);
    return null;
end
$body$;

create or replace function unstale.delete_1() returns trigger
    language plpgsql security definer
as $body$
declare
    done pg_catalog.bool;
begin
    if pg_catalog.oidne(tg_relid, unstale.table_1()) then
        return null; -- a copy of the table that it was made for
    end if;
    done := unstale.tell(1, unstale.one_row('{"watch":1,"rev":1,"old":', unstale.row_1(old)), false, true);
    return null;
end
$body$;

create or replace function unstale.truncate_1() returns trigger
    language plpgsql security definer
as $body$
declare
    done pg_catalog.bool;
begin
    if pg_catalog.to_regproc('unstale.uses_1') is null then
        return null; -- a column was dropped with CASCADE
    end if;
    if pg_catalog.oidne(tg_relid, unstale.table_1()) then
        return null; -- a copy of the table that it was made for
    end if;
    done := unstale.tell(1, '{"watch":1,"rev":1,"all":true}', false, true);
    return null;
end
$body$;

create or replace function unstale.uses_1() returns boolean language sql begin atomic select unstale.row_1(null) is null or unstale.fresh_1(null); end;

create or replace function unstale.inserts_1() returns trigger
    language plpgsql security definer
as $body$
declare
    few pg_catalog.record;
    joined pg_catalog.record;
    chunk pg_catalog.record;
    told pg_catalog.int8 default 0;
    done pg_catalog.bool;
begin
    if pg_catalog.to_regproc('unstale.uses_1') is null then
        return null; -- a column was dropped with CASCADE
    end if;
    if pg_catalog.oidne(tg_relid, unstale.table_1()) then
        return null; -- a copy of the table that it was made for
    end if;
    select pg_catalog.count(*) as rows, pg_catalog.string_agg(pg_catalog."left"(unstale.row_1(r.*), 8000), ',') as images, pg_catalog.bool_and(unstale.fresh_1(r.*)) as fresh
      into few from (select * from new_rows limit 33) r;
    if pg_catalog.int8gt(few.rows, 32) or pg_catalog.int4ge(pg_catalog.octet_length(few.images), 7900) then
        select pg_catalog.string_agg(i.image, E',\n') filter (where pg_catalog.octet_length(i.image) operator(pg_catalog.<=) 256) as images,
               pg_catalog.bool_and(i.fresh) as fresh,
               case when pg_catalog.bool_and(pg_catalog.octet_length(i.image) operator(pg_catalog.<=) 256) then pg_catalog.count(*) else 0 end as rows
          into joined
          from (select unstale.row_1(r.*) as image, unstale.fresh_1(r.*) as fresh from new_rows r offset 0 limit 500000) i;
        for chunk in
            select c.images, joined.fresh from unstale.cut(joined.images) c(images) where pg_catalog.int8gt(joined.rows, 0)
            union all
            select pg_catalog.string_agg(s.image, ','), pg_catalog.bool_and(s.fresh)
              from (select i.image, i.fresh, pg_catalog.sum(pg_catalog.octet_length(i.image) operator(pg_catalog.+) 1)
                               over (rows unbounded preceding) operator(pg_catalog./) 7000 as part
                      from (select unstale.row_1(r.*) as image, unstale.fresh_1(r.*) as fresh
                              from (select * from new_rows offset 0 operator(pg_catalog.+) joined.rows) r
                            offset 0) i) s
             group by s.part
        loop
            done := unstale.tell(1, unstale.one_row('{"watch":1,"rev":1,"rows":[', pg_catalog.concat(chunk.images, ']')), chunk.fresh, pg_catalog.int8lt(told, 64));
            told := pg_catalog.int8pl(told, 1);
        end loop;
    elsif pg_catalog.int8gt(few.rows, 0) then
        done := unstale.tell(1, unstale.one_row('{"watch":1,"rev":1,"rows":[', pg_catalog.concat(few.images, ']')), few.fresh, true);
    end if;
    return null;
end
$body$;

create or replace function unstale.updates_1() returns trigger
    language plpgsql security definer
as $body$
declare
    few pg_catalog.record;
    joined pg_catalog.record;
    chunk pg_catalog.record;
    told pg_catalog.int8 default 0;
    done pg_catalog.bool;
begin
    if pg_catalog.to_regproc('unstale.uses_1') is null then
        return null; -- a column was dropped with CASCADE
    end if;
    if pg_catalog.oidne(tg_relid, unstale.table_1()) then
        return null; -- a copy of the table that it was made for
    end if;
    select pg_catalog.count(*) as rows, pg_catalog.string_agg(pg_catalog."left"(unstale.row_1(r.*), 8000), ',') as images, pg_catalog.bool_and(unstale.fresh_1(r.*)) as fresh
      into few from (select * from new_rows limit 33) r;
    if pg_catalog.int8gt(few.rows, 32) or pg_catalog.int4ge(pg_catalog.octet_length(few.images), 7900) then
        select pg_catalog.string_agg(i.image, E',\n') filter (where pg_catalog.octet_length(i.image) operator(pg_catalog.<=) 256) as images,
               pg_catalog.bool_and(i.fresh) as fresh,
               case when pg_catalog.bool_and(pg_catalog.octet_length(i.image) operator(pg_catalog.<=) 256) then pg_catalog.count(*) else 0 end as rows
          into joined
          from (select unstale.row_1(r.*) as image, unstale.fresh_1(r.*) as fresh from new_rows r offset 0 limit 500000) i;
        for chunk in
            select c.images, joined.fresh from unstale.cut(joined.images) c(images) where pg_catalog.int8gt(joined.rows, 0)
            union all
            select pg_catalog.string_agg(s.image, ','), pg_catalog.bool_and(s.fresh)
              from (select i.image, i.fresh, pg_catalog.sum(pg_catalog.octet_length(i.image) operator(pg_catalog.+) 1)
                               over (rows unbounded preceding) operator(pg_catalog./) 7000 as part
                      from (select unstale.row_1(r.*) as image, unstale.fresh_1(r.*) as fresh
                              from (select * from new_rows offset 0 operator(pg_catalog.+) joined.rows) r
                            offset 0) i) s
             group by s.part
        loop
            done := unstale.tell(1, unstale.one_row('{"watch":1,"rev":1,"rows":[', pg_catalog.concat(chunk.images, ']')), chunk.fresh, pg_catalog.int8lt(told, 64));
            told := pg_catalog.int8pl(told, 1);
        end loop;
    elsif pg_catalog.int8gt(few.rows, 0) then
        done := unstale.tell(1, unstale.one_row('{"watch":1,"rev":1,"rows":[', pg_catalog.concat(few.images, ']')), few.fresh, true);
    end if;
    return null;
end
$body$;

create or replace function unstale.deletes_1() returns trigger
    language plpgsql security definer
as $body$
declare
    few pg_catalog.record;
    joined pg_catalog.record;
    chunk pg_catalog.record;
    told pg_catalog.int8 default 0;
    done pg_catalog.bool;
begin
    if pg_catalog.to_regproc('unstale.uses_1') is null then
        return null; -- a column was dropped with CASCADE
    end if;
    if pg_catalog.oidne(tg_relid, unstale.table_1()) then
        return null; -- a copy of the table that it was made for
    end if;
    select pg_catalog.count(*) as rows, pg_catalog.string_agg(pg_catalog."left"(unstale.row_1(r.*), 8000), ',') as images, pg_catalog.bool_and(false) as fresh
      into few from (select * from old_rows limit 33) r;
    if pg_catalog.int8gt(few.rows, 32) or pg_catalog.int4ge(pg_catalog.octet_length(few.images), 7900) then
        select pg_catalog.string_agg(i.image, E',\n') filter (where pg_catalog.octet_length(i.image) operator(pg_catalog.<=) 256) as images,
               pg_catalog.bool_and(i.fresh) as fresh,
               case when pg_catalog.bool_and(pg_catalog.octet_length(i.image) operator(pg_catalog.<=) 256) then pg_catalog.count(*) else 0 end as rows
          into joined
          from (select unstale.row_1(r.*) as image, false as fresh from old_rows r offset 0 limit 500000) i;
        for chunk in
            select c.images, joined.fresh from unstale.cut(joined.images) c(images) where pg_catalog.int8gt(joined.rows, 0)
            union all
            select pg_catalog.string_agg(s.image, ','), pg_catalog.bool_and(s.fresh)
              from (select i.image, i.fresh, pg_catalog.sum(pg_catalog.octet_length(i.image) operator(pg_catalog.+) 1)
                               over (rows unbounded preceding) operator(pg_catalog./) 7000 as part
                      from (select unstale.row_1(r.*) as image, false as fresh
                              from (select * from old_rows offset 0 operator(pg_catalog.+) joined.rows) r
                            offset 0) i) s
             group by s.part
        loop
            done := unstale.tell(1, unstale.one_row('{"watch":1,"rev":1,"rows":[', pg_catalog.concat(chunk.images, ']')), chunk.fresh, pg_catalog.int8lt(told, 64));
            told := pg_catalog.int8pl(told, 1);
        end loop;
    elsif pg_catalog.int8gt(few.rows, 0) then
        done := unstale.tell(1, unstale.one_row('{"watch":1,"rev":1,"rows":[', pg_catalog.concat(few.images, ']')), few.fresh, true);
    end if;
    return null;
end
$body$;

create or replace trigger unstale_1_delete after delete on public.users for each row when (true or unstale.uses_1()) execute function unstale.delete_1();

create or replace trigger unstale_1_deletes after delete on public.users referencing old table as old_rows for each statement execute function unstale.deletes_1();

create or replace trigger unstale_1_insert after insert on public.users referencing new table as new_rows for each row when (true or unstale.uses_1()) execute function unstale.insert_1();

create or replace trigger unstale_1_inserts after insert on public.users referencing new table as new_rows for each statement execute function unstale.inserts_1();

create or replace trigger unstale_1_rekeys after update on public.users for each row when (old.id is distinct from new.id or old.email is distinct from new.email) execute function unstale.update_1();

create or replace trigger unstale_1_truncate after truncate on public.users for each statement execute function unstale.truncate_1();

create or replace trigger unstale_1_update after update on public.users for each row when (true or unstale.uses_1()) execute function unstale.update_1();

create or replace trigger unstale_1_updates after update on public.users referencing new table as new_rows for each statement execute function unstale.updates_1();

alter table only public.users enable replica trigger unstale_1_delete;

alter table only public.users enable replica trigger unstale_1_insert;

alter table only public.users enable always trigger unstale_1_truncate;

alter table only public.users enable replica trigger unstale_1_update;
