-- Storing an order becomes cheaper.
--
-- The index by product is in the order in which rows are inserted and pages are read; before, each row went to a random
-- place of it. A page of a user's or a product's reservations is now read from the index without a sort.
--
-- Reservations can be read while the indexes are built: only what follows locks readers out, and it is short.
CREATE INDEX new_reservations_by_product ON reservations (product_id, reservation_id);
CREATE INDEX new_reservations_by_user ON reservations (user_id, reservation_id);
DROP INDEX reservations_by_product;
DROP INDEX reservations_by_user;
ALTER INDEX new_reservations_by_product RENAME TO reservations_by_product;
ALTER INDEX new_reservations_by_user RENAME TO reservations_by_user;

-- The foreign key looked the product up once for each row. This looks up each product of a statement once, and refuses
-- what the foreign key refused, with the same SQLSTATE. A product cannot be removed, because its first units are a row
-- of supply_changes, which refers to it. The function finds its table whatever search_path its session has: pg_dump loads
-- data with an empty one.
CREATE FUNCTION refuse_unknown_product() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    unknown text;
BEGIN
    SELECT stored.product_id INTO unknown
      FROM (SELECT DISTINCT product_id FROM stored_rows WHERE product_id IS NOT NULL) stored
     WHERE (SELECT p.product_id FROM products p WHERE p.product_id = stored.product_id LIMIT 1) IS NULL
     LIMIT 1;
    IF FOUND THEN
        RAISE foreign_key_violation
            USING MESSAGE = 'a reservation has a product that the ledger does not have',
                  CONSTRAINT = 'reservations_product_exists';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER reservations_product_exists AFTER INSERT ON reservations
    REFERENCING NEW TABLE AS stored_rows FOR EACH STATEMENT EXECUTE FUNCTION refuse_unknown_product();
CREATE TRIGGER reservations_product_still_exists AFTER UPDATE ON reservations
    REFERENCING NEW TABLE AS stored_rows FOR EACH STATEMENT EXECUTE FUNCTION refuse_unknown_product();
ALTER TABLE reservations DROP CONSTRAINT reservations_product_id_fkey;

-- Earlier programs cannot read the entries of this one (format 3).
UPDATE schema_compatibility SET oldest_program = 7;
